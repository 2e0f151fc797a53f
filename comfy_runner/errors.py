"""The error tree: three branches by whose fault it is, and `Problem`, one thing that is wrong."""

import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a request: what, where, and what to do about it."""

    code: str
    """Stable machine-readable name, such as `unknown_class_type`."""
    what: str
    """What is wrong, in one sentence without the place."""
    hint: str = ""
    """What to do next; empty when nothing sensible can be said."""
    node_id: str = ""
    """Id of the node concerned in the workflow; empty when no node is."""
    title: str = ""
    """The node's title, or its class_type when it has none."""
    input: str = ""
    """Name of the node's input, or of the request's field when there is no node."""

    @property
    def where(self) -> str:
        """The place, such as `node 6 (Positive prompt), input text`; empty when there is none."""
        parts = []
        if self.node_id:
            parts.append(
                f"node {self.node_id} ({self.title})" if self.title else f"node {self.node_id}"
            )
        if self.input:
            parts.append(f"input {self.input}")
        return ", ".join(parts)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text} {self.hint}" if self.hint else text

    def as_json(self) -> dict[str, str]:
        """The problem as a flat object of strings, without empty members."""
        fields = {
            "code": self.code,
            "what": self.what,
            "hint": self.hint,
            "node_id": self.node_id,
            "title": self.title,
            "input": self.input,
        }
        return {name: value for name, value in fields.items() if value}


class ComfyRunnerError(Exception):
    """Anything this package raises on purpose."""

    code = "error"

    def as_json(self) -> dict[str, object]:
        """The error for a program: its code and its text."""
        return {"code": self.code, "message": str(self)}


class CallerError(ComfyRunnerError):
    """The request is wrong and would fail again; carries every problem found, not the first."""

    code = "caller_error"

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__(listing(self.problems))

    def as_json(self) -> dict[str, object]:
        """The error for a program, with every problem."""
        return {**super().as_json(), "problems": [problem.as_json() for problem in self.problems]}


class InvalidWorkflow(CallerError):
    """The document is no workflow, or its graph cannot run."""

    code = "invalid_workflow"


class InvalidInput(CallerError):
    """A value or file given with the request does not fit."""

    code = "invalid_input"


class UnknownModel(CallerError):
    """A model that the workflow names is neither on disk nor in the manifest."""

    code = "unknown_model"


class Refused(CallerError):
    """The request asks for something that the policy of this machine does not allow."""

    code = "refused"


class RunError(ComfyRunnerError):
    """The workflow failed in a node."""

    code = "run_failed"

    def __init__(
        self,
        node_id: str,
        title: str,
        class_type: str,
        exception_type: str,
        message: str,
        *,
        out_of_memory: bool = False,
    ) -> None:
        self.node_id = node_id
        self.title = title
        self.class_type = class_type
        self.exception_type = exception_type
        self.message = message
        self.out_of_memory = out_of_memory
        name = class_type if title in ("", class_type) else f"{title}, {class_type}"
        place = f"node {node_id} ({name})" if name else f"node {node_id}"
        cure = " Try a smaller size, a smaller batch or fewer frames." if out_of_memory else ""
        super().__init__(f"{place} failed: {exception_type}: {message}{cure}")


class NothingProduced(RunError):
    """The workflow ran to its end, and there is nothing to return."""

    code = "nothing_produced"

    def __init__(self, outputs: str) -> None:
        """`outputs` names the nodes that should have made something."""
        super().__init__("", "", "", "NothingProduced", "")
        self.args = (
            f"The workflow ran to its end, but {outputs} made no file, text or other value.",
        )


class MachineError(ComfyRunnerError):
    """Our side failed; the same request may work when it is sent again."""

    code = "machine_error"


class StartFailed(MachineError):
    """ComfyUI did not start."""

    code = "start_failed"


LONGEST_LINE = 500
"""Characters of a printed line that an error repeats: a crash of Python lists all its modules in
one."""


class Crashed(MachineError):
    """The ComfyUI process ended while it was needed."""

    code = "crashed"

    def __init__(self, exit_code: int | None, log_tail: Sequence[str], when: str) -> None:
        self.exit_code = exit_code
        """As `subprocess` gives it: negative for a signal."""
        self.log_tail = tuple(log_tail)
        """The last lines that ComfyUI printed, oldest first."""
        super().__init__(
            f"ComfyUI ended {when} ({describe_exit(exit_code)})."
            + (
                "".join(f"\n  | {line[:LONGEST_LINE]}" for line in self.log_tail)
                or " It printed nothing."
            )
        )


class TimedOut(MachineError):
    """The run did not end before its deadline."""

    code = "timed_out"


class Stalled(MachineError):
    """The run made no progress for longer than the stall limit."""

    code = "stalled"


class Cancelled(MachineError):
    """The run was interrupted by somebody else than its caller."""

    code = "cancelled"


class DownloadFailed(MachineError):
    """A file could not be fetched."""

    code = "download_failed"


class HashMismatch(DownloadFailed):
    """A fetched file is not the one that was asked for."""

    code = "hash_mismatch"


SHOWN = 50
"""How many problems an error's text lists; the error itself carries them all."""


def listing(problems: Sequence[Problem]) -> str:
    """All problems as text: one on a line of its own, several as a numbered list."""
    if len(problems) == 1:
        return str(problems[0])
    lines = [f"{len(problems)} problems:"]
    lines += [f"  {number}. {problem}" for number, problem in enumerate(problems[:SHOWN], 1)]
    if problems[SHOWN:]:
        lines.append(f"  ... and {len(problems) - SHOWN} more.")
    return "\n".join(lines)


def describe_exit(exit_code: int | None) -> str:
    """An exit status in words: `exit code 3`, `signal SIGSEGV`, `status unknown`."""
    if exit_code is None:
        return "status unknown"
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"signal {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"signal {-exit_code}"
