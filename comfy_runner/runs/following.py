"""Follows one run in ComfyUI: given to it, listened to, found again after a break, stopped."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from comfy_runner.comfyui.client import ComfyClient, Disconnected, Message, Messages
from comfy_runner.comfyui.process import ComfyProcess
from comfy_runner.errors import CallerError, Crashed, MachineError, Stalled
from comfy_runner.graph.workflow import Workflow
from comfy_runner.runs.events import Event, Execution

TICK = 0.1
"""Longest single wait in seconds: Cog's cancel strikes only between two of them."""

SILENCE = 5.0
"""Seconds without a message after which ComfyUI is asked how the run stands."""

TAKEN = "got prompt"
"""What ComfyUI prints when it is given a workflow, before it looks at it (server.py post_prompt,
0.30.0)."""

ASK_AGAIN = 0.5
"""Seconds without word that a cancelled run has ended after which ComfyUI is asked once more."""


class Following:
    """One run in one ComfyUI: `events` once, then `cancel` and `let_go` in any case."""

    def __init__(
        self,
        process: ComfyProcess,
        client: ComfyClient,
        execution: Execution,
        *,
        stall_timeout: float,
        check_deadline: Callable[[], None],
        time_left: Callable[[], float],
        told: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """`stall_timeout` is in seconds, `check_deadline` raises when the time for the run is over,
        until which there are `time_left()` seconds. `told` is called with each message, those of
        other runs included."""
        self.execution = execution
        self._process = process
        self._client = client
        self._id = execution.run_id
        self._stall_timeout = stall_timeout
        self._check_deadline = check_deadline
        self._time_left = time_left
        self._told = told
        self._is_given = False
        """Whether ComfyUI may know of the run."""
        self._accepted = False
        """Whether ComfyUI has said so."""
        self._messages: Messages | None = None
        self._has_gaps = False
        """Whether messages of the run may not have come."""
        self._is_heard = False
        """Whether `_messages` have told the whole run, so that the next one can rely on them."""

    @property
    def begun(self) -> bool:
        """Whether ComfyUI may have begun with it, even where its answer was lost."""
        return self._accepted or any(TAKEN in line for line in self._process.tail(200))

    def events(
        self, workflow: Workflow, begun: Callable[[], None] | None = None
    ) -> Iterator[Event]:
        """Submit the workflow and tell what happens until ComfyUI has finished with it.

        `begun` is called once ComfyUI has the workflow, for what can be done while it works.

        Raises: `InvalidWorkflow` when ComfyUI refuses it, `MachineError`, and as `check_deadline`
        does. How the run itself ended is `execution`'s to tell.
        """
        execution = self.execution
        try:
            self._messages = self._client.listen()
            self._is_given = True
            self._submit(workflow, self._messages.client_id)
        except Disconnected as err:
            self._reconnect(err)
            raise MachineError(f"ComfyUI did not answer: {err}") from err
        if begun is not None:
            begun()
        while not execution.is_done:
            try:
                yield from self._listen(self._messages)
            except Disconnected as err:
                self._messages = self._reconnect(err)
        self._is_heard = not self._has_gaps

    def cancel(self, grace: float) -> bool:
        """Stop the run where it goes on; whether ComfyUI is free within `grace` seconds, or gone.

        Raises: `MachineError`, `Disconnected`.
        """
        if not self._is_given or self.execution.is_done or not self._process.alive:
            return True
        now = time.monotonic()
        # A run whose acceptance was not awaited may enter the queue a little later, untold.
        first, limit = now + (0.0 if self._accepted else 1.0), now + grace
        while now < limit:
            self._client.cancel(self._id)
            running, pending = self._client.queue()
            is_over = now >= first or self.execution.is_done
            if is_over and self._id not in (*running, *pending):
                # Without its worker ComfyUI takes a waiting run back, and never runs another.
                return self._client.worker_alive()
            self._await_end(min(now + (ASK_AGAIN if self._accepted else TICK), limit))
            now = time.monotonic()
        return False

    def let_go(self, *, free: bool) -> None:
        """Have the run forgotten, and the connection kept for the next one where it is a good one.

        If ComfyUI is not `free`, it is killed with all that it knows.
        """
        kept = None
        if free and self._is_given and self._process.alive:
            kept = self._messages if self._is_heard else None
            self._client.after_run(self._id, kept)
        if kept is None and self._messages is not None:
            self._messages.close()

    def _submit(self, workflow: Workflow, client_id: str) -> None:
        try:
            self._client.submit(
                workflow.to_json(),
                self._id,
                client_id=client_id,
                timeout=max(self._time_left(), TICK),
            )
        except CallerError:
            # Also what is refused may run, as far as ComfyUI finds it right: `end` stops it.
            self._accepted = True
            raise
        self._accepted = True

    def _listen(self, messages: Messages) -> Iterator[Event]:
        """Tell the events of one connection until the run has ended.

        ComfyUI is asked how the run stands after each `SILENCE` seconds, and at the beginning when
        messages may have been missed.

        Raises: `Disconnected`.
        """
        execution = self.execution
        heard = asked = time.monotonic()
        if self._has_gaps:
            yield from self._reconcile()
        while not execution.is_done:
            self._check_deadline()
            message = messages.receive(TICK)
            now = time.monotonic()
            if self._is_ours(message):
                heard = now
            if isinstance(message, Mapping):
                self._told(message)
                yield from execution.receive(message)
            if now - heard > self._stall_timeout:
                raise Stalled(
                    f"The run gave no sign of progress for {now - heard:.0f} s"
                    " (setting COMFY_RUNNER_STALL_TIMEOUT); it was stopped."
                )
            if now - max(heard, asked) > SILENCE:
                asked = now
                # A node may keep the interpreter to itself, and with it the server, for as long as
                # the stall limit lets it; that ComfyUI ended would be told by the socket.
                with contextlib.suppress(Disconnected):
                    yield from self._reconcile()

    def _is_ours(self, message: Message | None) -> bool:
        """Whether a message is a sign of this run's life: node packs send others all the time."""
        if isinstance(message, bytes):
            return True
        data = message.get("data") if message is not None else None
        return isinstance(data, Mapping) and data.get("prompt_id") == self._id

    def _reconnect(self, cause: Disconnected) -> Messages:
        """A new connection after one that broke, which is `_messages` from now on.

        Raises: `Crashed` when it broke because ComfyUI ended, `TimedOut` or `Stalled` when it keeps
        silent for longer than it may.
        """
        process, limit = self._process, self._stall_timeout
        self._has_gaps = True
        if self._messages is not None:
            self._messages.close()
        since = time.monotonic()
        while time.monotonic() - since < limit:
            self._check_deadline()
            if not process.alive:
                when = "during the run" if self.begun else "before it was given the run"
                raise process.crashed(when) from cause
            try:
                # Under the same name: the rest of the run is told to it and to nobody else.
                name = self._id if self._messages is None else self._messages.client_id
                self._messages = self._client.connect(name)
            except Disconnected:
                # Mostly ComfyUI is ending, and its port went first. One that is busy tells
                # nobody when it takes connections again.
                process.ends_within(TICK)
            else:
                return self._messages
        raise Stalled(f"ComfyUI has not answered for {limit:.0f} s: {cause}") from cause

    def _reconcile(self) -> Iterator[Event]:
        """Ask how the run stands, in place of messages that may have been missed."""
        client = self._client
        history = client.history(self._id)
        if history is None:
            running, pending = client.queue()
            if self._id in running or self._id in pending:
                if not client.worker_alive():
                    raise Crashed(None, self._process.tail(20), "inside: its worker thread died")
                return
            history = client.history(self._id)  # it may have ended between the two questions
        if history is None:
            raise MachineError("ComfyUI has lost the run: it is neither queued nor finished.")
        self._has_gaps = True
        yield from self.execution.settle(history)

    def _await_end(self, until: float) -> None:
        """Wait until ComfyUI says that the run has ended, or `until` a moment by `monotonic`."""
        messages, execution = self._messages, self.execution
        while not execution.is_done and (left := until - time.monotonic()) > 0:
            try:
                message = None if messages is None else messages.receive(min(left, TICK))
            except (Disconnected, MachineError):  # one that was struck amid a message tells nothing
                messages = message = None
            if isinstance(message, Mapping):
                for _ in execution.receive(message):
                    pass
            if messages is None and self._process.ends_within(min(left, TICK)):
                return
