"""Predictions without end over the real Cog server, while everything around them goes wrong.

Every third request is bad. Of the others about half are honest, and every answer is looked at:
the pixels of pictures, the words of texts. The rest meet a fault, drawn at random:

  killed        ComfyUI gets SIGKILL or SIGSEGV in the middle of a node
  killed early  the same before it has begun with the workflow, which is begun again, or just then
  killed idle   the same between two requests, of which the second must not notice
  stopped       ComfyUI gets SIGSTOP in the middle of a node, and SIGCONT two seconds later
  gone          the caller closes the connection in the middle of a node
  gone fetching the same while a file's server is silent
  cancelled     the prediction is cancelled in the middle of a node
  late          the run is over its timeout in the middle of a node
  silent        the run is over its timeout while a file's server is silent
  cut           a file's server always ends the connection halfway
  cut once      a LoRA's server does so once: the picture has to come nevertheless
  cut socket    ComfyUI's connection to us ends in the middle of a node: the picture has to come
  busy disk     another program writes and syncs all the time on the disk of the home folder

Each request has to be answered within a minute or two, whatever befell the one before it. At the
end the processes, threads, open files, and files on disk have to be those from after the warm-up,
the memory of Cog's server and its worker has to be what it was after a quarter of the requests,
and once the server is told to end, nothing of it may be left. Exit code 1 when anything is wrong.

The same seed draws the same requests and faults; where in a node a fault strikes is not repeated.
"""

import argparse
import base64
import os
import random
import signal
import statistics
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil
import requests
from soak_cases import ENDLESS, HONEST, LONG, Case, Cases, serving
from soak_judges import Answer, Judge, either, fails, is_gone
from soak_stock import SLACK, Family, Stock, shapes
from subjects import CogServer, ServerFailed, machine, print_table, workplace

from comfy_runner.config import PROJECT, Config

LIMIT = 120.0
"""Seconds for a request: it may have to wait for ComfyUI to boot."""

SETTLING = 15.0
"""Seconds until the server is at rest after its last answer."""

PAUSE = 2.0
"""Seconds that ComfyUI is stopped."""

BUSY = 64 * 2**20
"""Bytes that a busy disk is given at once."""

GROWTH = 48
"""MiB by which Cog's server or its worker may have grown in the last three quarters."""

TOLD = 400
"""Letters of what is wrong with an answer that are printed."""

Act = Callable[[str], bool]
"""Takes each log line of a prediction; true when the caller has heard enough and goes away."""


@dataclass(frozen=True)
class Turn:
    """One request with what is done to it."""

    fault: str
    case: Case
    act: Act | None = None
    """What is done while it runs; without it, the caller just waits for the whole answer."""
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    """What is done from before the request until its answer is there."""


@dataclass
class Tally:
    """How the requests went."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Fault to the seconds of each answer."""
    wrong: list[str] = field(default_factory=list)
    """Everything that is not as it has to be, to be printed."""
    wrong_of: Counter[str] = field(default_factory=Counter)

    def note(self, number: int, turn: Turn, seconds: float, wrong: str) -> None:
        """Keep how one request went; `wrong` is empty for a right answer."""
        self.seconds.setdefault(turn.fault, []).append(seconds)
        if wrong:
            self.wrong_of[turn.fault] += 1
            told = " ".join(wrong.split())[:TOLD]
            self.wrong.append(f"request {number} ({turn.fault}, {turn.case.name}): {told}")
            print(self.wrong[-1], flush=True)


class Soak:
    """The server under test, and what is done to it."""

    def __init__(self, server: CogServer, cases: Cases, chance: random.Random, home: Path) -> None:
        self.server = server
        self.home = home
        self.cases = cases
        self.chance = chance
        self.family = Family(server)
        self.tally = Tally()
        self.faults: Mapping[str, Callable[[], Turn]] = {
            "killed": self._killed,
            "killed early": self._killed_early,
            "killed idle": self._killed_idle,
            "stopped": self._stopped,
            "gone": self._gone,
            "gone fetching": self._gone_fetching,
            "cancelled": self._cancelled,
            "late": self._late,
            "silent": self._silent,
            "cut": self._cut,
            "cut once": self._cut_once,
            "cut socket": self._cut_socket,
            "busy disk": self._busy_disk,
        }

    def turns(self, count: int) -> Iterator[Turn]:
        """So many requests at random."""
        yield from (self._turn(number) for number in range(1, count + 1))

    def each(self) -> Iterator[Turn]:
        """Each fault once, and bad requests among them."""
        for number, make in enumerate(self.faults.values()):
            yield make()
            if number % 2:
                yield Turn("bad input", self.cases.bad())

    def _turn(self, number: int) -> Turn:
        """What comes next; numbers count from 1."""
        if number % 3 == 0:
            return Turn("bad input", self.cases.bad())
        if self.chance.random() < 0.5:  # noqa: PLR2004
            return Turn("none", self.cases.honest(), self._listening())
        return self.faults[self.chance.choice(list(self.faults))]()

    def play(self, number: int, turn: Turn) -> None:
        """Ask, and judge the answer."""
        start = time.monotonic()
        try:
            with turn.around():
                answer = self._ask(turn)
            wrong = turn.case.judge(answer)
        except (ServerFailed, requests.RequestException, psutil.Error) as err:
            wrong = f"no answer: {type(err).__name__}: {err}"
        seconds = time.monotonic() - start
        if seconds > LIMIT:
            wrong = wrong or f"the answer took {seconds:.0f} s"
        self.tally.note(number, turn, seconds, wrong)

    def rest(self, number: int) -> None:
        """Return when no prediction runs, and the last result is a plain picture's.

        Raises: `ServerFailed`.
        """
        self.play(number, Turn("at rest", self.cases.honest("plain")))
        self.server.wait_ready(SETTLING)

    def _ask(self, turn: Turn) -> Answer:
        name = uuid.uuid4().hex
        if turn.act is None:
            reply = self.server.predict(turn.case.inputs, LIMIT, prediction_id=name)
            if reply.status == requests.codes.unprocessable_entity:
                return Answer("refused", error=str(reply.body))
            return answer_of(reply.body)
        with closing(self.server.stream(turn.case.inputs, LIMIT, prediction_id=name)) as events:
            self._running = name
            chunks = []
            for event, told in events:
                if event == "output":
                    chunks.append(told["chunk"])
                elif event == "log" and turn.act(told["data"]):
                    return Answer("gone")
                elif event == "completed":
                    answer = answer_of(told)
                    if answer.status == "succeeded" and list(told["output"]) != chunks:
                        return Answer("failed", error="streamed and whole output differ")
                    return answer
        return Answer("lost", error="the stream ended before the prediction did")

    def _listening(self) -> Act | None:
        """Half of the callers take the answer whole, the others as a stream."""
        return (lambda _: False) if self.chance.random() < 0.5 else None  # noqa: PLR2004

    def _kill(self) -> None:
        """Kill ComfyUI in one of two ways."""
        number = self.chance.choice((signal.SIGKILL, signal.SIGSEGV))
        self.family.members()["comfyui"].send_signal(number)

    @contextmanager
    def _bury(self) -> Iterator[None]:
        """Kill ComfyUI and wait until it is gone: a run that begins while it dies has to fail.

        Where it has been killed before, there may be none.
        """
        members = self.family.members()
        if "comfyui" in members:
            self._kill()
            members["comfyui"].wait(SETTLING)
            deadline = time.monotonic() + SETTLING
            # It ends as ComfyUI did; whether its parent has asked for that yet does not count.
            while "guard" in members and is_alive(members["guard"]) and time.monotonic() < deadline:
                Event().wait(0.02)
        yield

    def _stop(self) -> None:
        comfyui = self.family.members()["comfyui"]
        comfyui.suspend()
        Event().wait(PAUSE)
        comfyui.resume()

    def _killed(self) -> Turn:
        return Turn(
            "killed", self._endless(fails("Crashed", "signal SIG")), once("step", self._kill)
        )

    def _killed_early(self) -> Turn:
        case = self.cases.sampled(LONG)
        judge = either(case.judge, fails("Crashed", "signal SIG"))
        return Turn("killed early", replace(case, judge=judge), once("Run ", self._kill))

    def _killed_idle(self) -> Turn:
        return Turn("killed idle", self.cases.honest(), self._listening(), self._bury)

    def _stopped(self) -> Turn:
        return Turn("stopped", self.cases.sampled(LONG), once("step", self._stop))

    def _gone(self) -> Turn:
        return Turn("gone", self._endless(is_gone), lambda line: "step" in line)

    def _gone_fetching(self) -> Turn:
        name = self.chance.choice(("red.png", "0.safetensors"))
        case = self.cases.fetching("silent", name, is_gone)
        return Turn("gone fetching", case, lambda line: "Run " in line)

    def _cancelled(self) -> Turn:
        case = self._endless(fails(status="canceled"))
        return Turn("cancelled", case, once("step", lambda: self.server.cancel(self._running)))

    def _late(self) -> Turn:
        judge = fails("TimedOut", "2 s while it ran")
        return Turn("late", self._endless(judge, timeout=2.0))

    def _silent(self) -> Turn:
        judge = fails("TimedOut", "2 s while")
        name = self.chance.choice(("red.png", "0.safetensors"))
        return Turn("silent", self.cases.fetching("silent", name, judge, timeout=2.0))

    def _cut(self) -> Turn:
        name, *says = self.chance.choice(
            (("red.png", "node 1", "input image"), ("0.safetensors", "0.safetensors"))
        )
        return Turn("cut", self.cases.fetching("cut", name, fails("DownloadFailed", *says)))

    def _cut_once(self) -> Turn:
        return Turn("cut once", self.cases.lora("cut-once"), self._listening())

    def _cut_socket(self) -> Turn:
        def cut() -> None:
            self.family.members()["comfyui"].send_signal(signal.SIGUSR1)

        return Turn("cut socket", self.cases.sampled(LONG), once("step", cut))

    def _busy_disk(self) -> Turn:
        case = self.cases.honest()
        return Turn("busy disk", case, self._listening(), lambda: busy_disk(self.home))

    def _endless(self, judge: Judge, **inputs: Any) -> Case:
        case = self.cases.sampled(ENDLESS)
        return Case(case.name, {**case.inputs, **inputs}, judge)


@contextmanager
def busy_disk(folder: Path) -> Iterator[None]:
    """Keep the disk of a folder writing for as long as the block runs."""
    over = Event()

    def write() -> None:
        with tempfile.TemporaryFile(dir=folder) as file:
            while not over.is_set():
                file.seek(0)
                file.write(bytes(BUSY))
                file.flush()
                os.fsync(file.fileno())

    thread = Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def once(word: str, action: Callable[[], object]) -> Act:
    """Do something when the first log line with a word comes, and listen on."""
    done = Event()

    def act(line: str) -> bool:
        if word in line and not done.is_set():
            done.set()
            action()
        return False

    return act


def is_alive(process: psutil.Process) -> bool:
    """Whether the process is there, and not only its exit status."""
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def answer_of(prediction: Mapping[str, Any]) -> Answer:
    """The answer in Cog's JSON object of a prediction."""
    addresses = prediction.get("output") or ()
    files = tuple(base64.b64decode(address.partition(",")[2]) for address in addresses)
    return Answer(prediction["status"], files, prediction.get("error") or "")


def soak(config: Config, count: int, seed: int) -> Tally:
    """All of it, from the server's start to its end; with a `count` of 0 each fault once."""
    chance = random.Random(seed)  # noqa: S311
    with serving() as files, served(config, files.url("", "")) as server:
        trial = Soak(server, Cases(files, chance), chance, config.home)
        for name in HONEST:  # what is loaded once and kept is there before it is counted
            for turn in (Turn("warm-up", trial.cases.honest(name), act) for act in LISTENERS):
                trial.play(0, turn)
        trial.play(0, Turn("warm-up", trial.cases.bad()))
        trial.rest(0)
        before = Stock.take(trial.family, config.home)
        early = trial.family.memory()
        turns = trial.turns(count) if count else trial.each()
        for number, turn in enumerate(turns, 1):
            trial.play(number, turn)
            if number == max(count // 4, 1):
                early = trial.family.memory()
        for name in HONEST:  # whatever the last fault was, all is well again
            trial.play(count, Turn("afterwards", trial.cases.honest(name), LISTENERS[0]))
        trial.rest(count)
        after, late = Stock.take(trial.family, config.home), trial.family.memory()
        trial.tally.wrong += after.leaks(before)
        for role in ("server", "worker"):
            if late[role] > early[role] + GROWTH:
                trial.tally.wrong.append(
                    f"memory: {role}, {early[role]:.0f} to {late[role]:.0f} MiB"
                )
        family = trial.family.members().values()
        show(before, after, early, late)
    _, alive = psutil.wait_procs(list(family), timeout=SETTLING)
    trial.tally.wrong += [f"process left: {process}" for process in alive]
    left = [shape for shape in shapes(config.home) if shape.startswith(("runs", "tmp"))]
    trial.tally.wrong += [f"file left: {shape}" for shape in left]
    return trial.tally


LISTENERS: tuple[Act | None, ...] = (lambda _: False, None)


@contextmanager
def served(config: Config, base_url: str) -> Iterator[CogServer]:
    """The Cog server, ready, with its temporary files where they can be counted."""
    temporary = config.home / "tmp"
    temporary.mkdir()
    environment = {
        "TMPDIR": str(temporary),
        "OMP_NUM_THREADS": "1",
        "COMFY_RUNNER_PRIVATE_ADDRESSES": "1",  # the file server is on this machine
        "COMFY_RUNNER_CUSTOM_NODES": str(Path(__file__).with_name("custom_nodes")),
        "COMFY_RUNNER_HF_ENDPOINT": base_url.rstrip("/"),  # nothing is asked of the real one
    }
    with CogServer(PROJECT, environment) as server:
        server.wait_ready(config.boot_timeout)
        yield server


def show(
    before: Stock, after: Stock, early: Mapping[str, float], late: Mapping[str, float]
) -> None:
    """Print what there was of each process, before and after."""
    rows = []
    for role in before.counts:
        figures = [
            f"{stock.counts.get(role, {}).get(what, 0)}"
            for what in SLACK
            for stock in (before, after)
        ]
        sizes = [f"{memory[role]:.0f}" if role in memory else "" for memory in (early, late)]
        rows.append((role, *figures, *sizes))
    head = ("process", "threads", "after", "files", "after", "MiB at 1/4", "after")
    print_table(head, rows)


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=500, help="how many (default 500)")
    parser.add_argument("--each", action="store_true", help="each fault once, and no more")
    parser.add_argument("--seed", type=int, default=1, help="of the draw (default 1)")
    options = parser.parse_args()
    if options.requests < 1:
        parser.error("--requests must be 1 or more")
    return options


def main() -> None:
    """Run it, and print how each kind of request went."""
    options = arguments()
    print(f"Before: {machine()}", flush=True)
    start = time.monotonic()
    with workplace() as config:
        tally = soak(config, 0 if options.each else options.requests, options.seed)
    print(f"After:  {machine()}, {time.monotonic() - start:.0f} s in all")
    rows = [
        (
            fault,
            str(len(seconds)),
            str(tally.wrong_of[fault]),
            f"{statistics.median(seconds):.2f}",
            f"{max(seconds):.2f}",
        )
        for fault, seconds in sorted(tally.seconds.items())
    ]
    print_table(("fault", "requests", "wrong", "median s", "worst s"), rows)
    if tally.wrong:
        print("WRONG", *tally.wrong, sep="\n  ")
        sys.exit(1)
    print("Every answer was right, and nothing is left.")


if __name__ == "__main__":
    main()
