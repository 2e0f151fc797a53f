"""What a prediction gives back: files, kept in a folder, or a failure, as one of our errors."""

import base64
import binascii
import mimetypes
import re
from collections import deque
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from comfy_runner import errors
from comfy_runner.errors import (
    CallerError,
    ComfyRunnerError,
    InvalidInput,
    MachineError,
    Problem,
    RunError,
)
from comfy_runner.fetch.urls import EXTENSIONS
from comfy_runner.runs.outputs import free_name

DATA = re.compile(r"data:(?P<kind>[^;,]*)(?P<options>[^,]*),")
MADE = re.compile(r"^Made (\w[A-Za-z0-9._-]*) \(node ", re.MULTILINE)
"""The line that `serving.prediction.Narrator` prints before each result: a data URI has no name."""
PREFIXES = ("Prediction failed: ", "Generator iteration error: ")
"""What coglet 0.23 puts before the message of an exception."""
CRASHED = "Worker crashed"
"""What coglet 0.23 says when the process that runs predict.py has ended."""
RAISED = re.compile(r"(?:[a-z_]\w*\.)*([A-Z]\w*): ")
"""The exception's class, which coglet puts there, too."""


class PredictionFailed(RunError):
    """The model's `run` failed."""

    code = "prediction_failed"

    def __init__(self, message: str) -> None:
        super().__init__("", "", "", "", message)
        self.args = (message,)


def failure(said: str) -> ComfyRunnerError:
    """The error for what a failed prediction's `error` says, in the branch of who is at fault.

    That is known where the model raises one of this package's errors, or Cog refuses an input;
    everything else is a failed run.
    """
    for prefix in PREFIXES:
        said = said.removeprefix(prefix)
    if said == CRASHED:
        return MachineError(f"{said}: its process is gone, perhaps for want of memory.")
    if said.startswith("Input validation error"):
        return InvalidInput([Problem("bad_input", said)])
    found = RAISED.match(said)
    kind = vars(errors).get(found[1]) if found else None
    if not found or not isinstance(kind, type) or not issubclass(kind, ComfyRunnerError):
        return PredictionFailed(said)
    said = said[found.end() :]
    if issubclass(kind, CallerError):
        return kind([Problem(kind.code, said)])
    return MachineError(said) if issubclass(kind, MachineError) else PredictionFailed(said)


class Results:
    """The results of one prediction, each kept as a file of a folder as it comes."""

    def __init__(self, folder: Path) -> None:
        """`folder` has to be there; what is in it stays."""
        self.outputs: list[Any] = []
        """What was kept, in order: the path of a file, any other value as it is."""
        self._folder = folder
        self._names: deque[str] = deque()

    def hear(self, log: str) -> None:
        """Take from a piece of the log how the next results are called."""
        self._names += MADE.findall(log)

    def keep(self, output: Any) -> Any:
        """Keep one output; returns it with paths for its files. Raises: `OSError`."""
        kept = self._kept(output)
        self.outputs.append(kept)
        return kept

    def _kept(self, output: Any) -> Any:
        match output:
            case str() if found := DATA.match(output):
                content = _decoded(output[found.end() :], found["options"])
                return output if content is None else str(self._write(content, found["kind"]))
            case list():
                return [self._kept(item) for item in output]
            case dict():
                return {key: self._kept(value) for key, value in output.items()}
            case _:
                return output

    def _write(self, content: bytes, kind: str) -> Path:
        name = Path(self._names.popleft() if self._names else f"output{_suffix(kind)}")
        target = self._folder / free_name(
            name.stem, name.suffix, lambda taken: (self._folder / taken).exists()
        )
        target.write_bytes(content)
        return target


def _suffix(kind: str) -> str:
    return EXTENSIONS.get(kind.lower()) or mimetypes.guess_extension(kind) or ""


def _decoded(payload: str, options: str) -> bytes | None:
    """The content of a data URI; None for a text that only looks like one."""
    if not options.lower().endswith(";base64"):
        return unquote_to_bytes(payload)
    try:
        return base64.b64decode(payload, validate=True)
    except binascii.Error:
        return None
