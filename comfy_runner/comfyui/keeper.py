"""Keeps a ComfyUI at hand: started again when it fails, and given up when it fails too often."""

import logging
import math
import threading
import time
from typing import Literal

from comfy_runner.comfyui import memory
from comfy_runner.comfyui.process import ComfyProcess
from comfy_runner.errors import MachineError, StartFailed, TimedOut

log = logging.getLogger(__name__)

State = Literal["starting", "ok", "restarting", "broken"]
"""`restarting`: ComfyUI is on its way, or has ended and the next run starts it; `broken`: closed,
or too often at fault for the health check."""

MEMORY_SHARE = 0.9
"""Part of the memory there is that ComfyUI may hold between runs when no limit is set."""


class Keeper:
    """Starts a ComfyUI, starts it again, counts how often it was at fault, and ends it.

    For one thread, but `health`, `why` and `restarts` are for any.
    """

    def __init__(self, process: ComfyProcess) -> None:
        """Nothing is started. The settings are those of the `process`."""
        self.process = process
        self.restarts = 0
        """How often ComfyUI was started again, for whatever reason."""
        self.occupied = False
        """Whether a run was not seen to its end, so that ComfyUI may still be at it."""
        self.closed = False
        """Whether it is over for good."""
        self._phase: Literal["new", "booting", "ready", "failed"] = "new"
        self._reason = ""
        """Why ComfyUI is not ready, or has not been of late, in one line."""
        self._faults = 0
        """How often it was at fault since the last run that it took to an end."""
        self._began = 0.0
        """When it was started last, by `time.monotonic`."""
        self._unwatched = False
        """Whether it boots and nobody waits for it."""
        self._most_memory = 0
        """Bytes that it may hold where no limit is set, as of its last boot; 0: not known."""
        self._lock = threading.Lock()
        """For what `health` changes."""

    @property
    def why(self) -> str:
        """Why `health` is not ok, or has not been of late, in one line; empty after a success."""
        if self._is_given_up() and not self.closed:
            return f"{self._faults} failures without a successful run: {self._reason}"
        return self._reason

    def health(self) -> State:
        """How ComfyUI is; only `broken` needs somebody's hand.

        May ask ComfyUI, for a second at most. Notices a boot that failed while nobody waited.
        """
        answers = self._phase in ("booting", "failed") and self.process.answers()
        with self._lock:
            if self._unwatched and not answers:
                self._notice_failed_boot()
        if self.closed or self._is_given_up():
            return "broken"
        if answers or (self._phase == "ready" and self.process.alive):
            return "ok"
        is_first = self._phase in ("new", "booting") and not self.restarts
        return "starting" if is_first else "restarting"

    def start(self) -> None:
        """Start ComfyUI for the first time and wait until it answers. Raises: `StartFailed`."""
        self._began = time.monotonic()
        self.process.start()
        self._await_ready()

    def close(self, why: str = "It was closed.") -> None:
        """End ComfyUI for good."""
        if not self.closed:
            self.closed, self._reason = True, why
        self.process.stop()

    def check_open(self) -> None:
        """Raises: `MachineError` once it is closed."""
        if self.closed:
            raise MachineError(f"This runner takes no more runs. {self.why}")

    def bring_up(self, deadline: float, *, low_memory: bool) -> None:
        """Start ComfyUI again where it ended or got stuck since the last run, and wait for it.

        Raises: `StartFailed`. `TimedOut` when it is not ready by the `deadline`, a moment of
        `time.monotonic`; it goes on starting.
        """
        self.check_open()
        if self._phase == "failed" and not self.process.answers():  # which is counted already
            self.start_again(self._reason, low_memory=low_memory)
        elif self._phase == "booting" and self.process.boots_plainly():
            pass  # it failed in a shortened way, and is on its way in the usual one
        elif not self.process.alive:
            when = "while it started" if self._phase == "booting" else "between two runs"
            self.start_again(str(self.process.crashed(when)), low_memory=low_memory, fault=True)
        elif self.occupied:
            self.start_again("A run was not seen to its end", low_memory=low_memory)
        elif self.process.low_memory != low_memory:
            self.start_again("ComfyUI is to use more or less memory", low_memory=low_memory)
        if self._phase != "ready":
            self._await_ready(deadline)

    def forgive(self) -> None:
        """Forget how often ComfyUI was at fault: it works."""
        if not self.closed:
            with self._lock:
                self._faults, self._reason = 0, ""

    def after_run(self, *, free: bool, fault: bool, replaced: bool) -> None:
        """Have ComfyUI ready for the next run, or on its way.

        `free`: whether it has nothing to do any more. `fault`: whether it was its fault that the
        run failed. `replaced`: whether it is started again anyway.
        """
        if self.closed:
            return
        if not self.process.alive:
            reason = str(self.process.crashed("during a run"))
            self.start_again(reason, fault=True, quiet=True)
        elif not free:
            # A node that no cancel and no deadline can interrupt says nothing about ComfyUI.
            self.start_again("ComfyUI did not stop a run", fault=fault, quiet=True)
        else:
            self.occupied = False
            most = self.process.config.max_child_memory
            limit = most or self._most_memory
            held = None if replaced else self.process.memory()
            if held is not None and 0 < limit < held:
                figures = f"{memory.figure(held)} of {memory.figure(limit)}"
                self.start_again(f"ComfyUI holds {figures} that it may", quiet=True)

    def start_again(
        self, reason: str, *, low_memory: bool = False, fault: bool = False, quiet: bool = False
    ) -> None:
        """Kill what runs and start it again; the next run waits for it.

        `fault`: whether ComfyUI was at fault. `quiet`: whether a failure is left for the next run
        to find, which tries once more.

        Raises: `StartFailed` unless `quiet`.
        """
        if self.closed:
            return
        reason = _first_line(reason)
        log.warning("%s: starting ComfyUI again.", reason.rstrip("."))
        with self._lock:
            self._phase, self._reason, self._unwatched = "booting", reason, False
            self._faults += fault
            self.restarts += 1
        self._began = time.monotonic()
        try:
            self.process.restart(low_memory=low_memory)
        except StartFailed as err:
            with self._lock:
                self._fail(str(err))
            if not quiet:
                raise
            log.warning("%s", err)
        else:
            self.occupied = False
            self._unwatched = True

    def _await_ready(self, deadline: float = math.inf) -> None:
        """Wait for ComfyUI, which has the time for a boot since its start, however many wait.

        Raises: `StartFailed`. `TimedOut` when it is not ready by the `deadline`.
        """
        with self._lock:
            self._phase, self._unwatched = "booting", False
        is_ready = False
        try:
            is_ready = self.process.wait_ready(
                self.process.config.boot_timeout, since=self._began, until=deadline
            )
            if is_ready:
                self._phase = "ready"
                self._most_memory = int((memory.available() or 0) * MEMORY_SHARE)
        except StartFailed as err:
            with self._lock:
                self._fail(str(err))
            raise
        finally:
            self._unwatched = True
        if not is_ready:
            raise TimedOut("The time for the run was over while ComfyUI started; it starts on.")
        if not self._faults:
            self._reason = ""

    def _notice_failed_boot(self) -> None:
        limit = self.process.config.boot_timeout
        if self._phase == "booting" and not self.process.alive:
            try:
                if not self.process.boots_plainly():
                    self._fail(str(self.process.crashed("while it started")))
            except StartFailed as err:
                self._fail(str(err))
        elif self._phase == "booting" and time.monotonic() - self._began > limit:
            self._fail(f"ComfyUI did not answer within {limit:.0f} s.")

    def _fail(self, reason: str) -> None:
        """ComfyUI did not start; what is closed stays so."""
        if not self.closed:
            self._phase, self._reason = "failed", _first_line(reason)
            self._faults += 1

    def _is_given_up(self) -> bool:
        return self._faults >= self.process.config.max_restarts


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
