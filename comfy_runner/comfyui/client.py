"""ComfyUI's HTTP and WebSocket interface, as far as one run needs it; facts are those of 0.30.0."""

import contextlib
import http.client
import json
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, Self
from urllib.parse import urlsplit

from comfy_runner.comfyui.wire import (
    CONNECT_TIMEOUT,
    TICK,
    Answer,
    Disconnected,
    Http,
    Message,
    Messages,
    listen,
    parsed,
)
from comfy_runner.errors import InvalidWorkflow, MachineError, Problem

__all__ = ["ComfyClient", "Disconnected", "Message", "Messages"]

READ_TIMEOUT = 5.0  # seconds
SLOW_READ_TIMEOUT = 120.0
"""Seconds for answers that need work: validation reads every input file of the prompt."""

KEPT = 30.0
"""Seconds that a WebSocket is kept for the next run. What node packs send to everybody meanwhile
is held by ComfyUI until somebody reads it (server.py publish_loop)."""


class ComfyClient:
    """One ComfyUI server. May be used by several threads.

    All methods raise `Disconnected` when the server cannot be reached or does not answer in time,
    and `MachineError` for an answer that ComfyUI is not known to give.
    """

    def __init__(self, base_url: str, token: str = "") -> None:
        """`base_url` is such as `http://127.0.0.1:8188`; nothing is sent yet.

        `token` is that of `ComfyProcess`, without which our ComfyUI answers nothing.
        """
        self._place = urlsplit(base_url).netloc
        self._authorization = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = Http(self._place, self._authorization)
        self._kept: deque[Messages] = deque()
        """The connection that waits for the next run, if any; whoever takes it out owns it."""
        self._ended: SimpleQueue[tuple[str, Future[None]] | None] = SimpleQueue()
        """The ids of runs to forget, then None."""
        self._forgetting: Future[None] | None = None
        """Done when the last run is forgotten, or ComfyUI did not do so."""
        self._caretaker: threading.Thread | None = None

    def close(self) -> None:
        """Close the connections that are kept open, once the last run is forgotten."""
        if self._caretaker is not None:
            self._ended.put(None)
            self._caretaker.join()
            self._caretaker = None
        self._close_kept()
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def catalog(self) -> dict[str, Any]:
        """All that the server tells of its nodes: `object_info`, and `launcher.catalog`'s keys."""
        return {
            "object_info": self._get("/object_info", SLOW_READ_TIMEOUT),
            **self._get("/comfy_runner/catalog"),
        }

    def worker_alive(self) -> bool:
        """Whether the thread that runs prompts is there; without it all prompts wait for ever."""
        return bool(self._get("/comfy_runner/health", CONNECT_TIMEOUT)["worker_alive"])

    def connect(self, client_id: str) -> Messages:
        """The messages of the runs that are submitted for this client afterwards.

        Only one connection at a time may be open for a client: closing an older one silences the
        newer one (server.py websocket_handler).
        """
        return listen(self._place, client_id, self._authorization)

    def listen(self) -> Messages:
        """The messages of the runs that are submitted for its `client_id` afterwards.

        It is the connection that `after_run` has kept, unless that broke since; what came before
        is left out. The caller has it for himself until he closes it or gives it to `after_run`.
        """
        with contextlib.suppress(IndexError):  # the caretaker may be quicker
            kept = self._kept.pop()
            try:
                kept.drain()
            except Disconnected:
                kept.close()
            else:
                return kept
        # A name of its own: ComfyUI may not have noticed yet that the one before is closed.
        return self.connect(uuid.uuid4().hex)

    def after_run(self, run_id: str, messages: Messages | None = None) -> None:
        """Have the run, which has ended, forgotten in the background; `settle` tells how that went.

        `messages` is a connection that has told all about it, to be kept for the next run.
        """
        if messages is not None:
            self._close_kept()
            self._kept.append(messages)
        if self._caretaker is None:
            # A daemon, because atexit functions, which end ComfyUI, run after all other threads.
            caretaker = threading.Thread(target=self._care, name="comfyui-care", daemon=True)
            caretaker.start()
            self._caretaker = caretaker
        # In this order: Cog's cancel may strike anywhere, and what nobody does is not waited for.
        forgetting: Future[None] = Future()
        self._ended.put((run_id, forgetting))
        self._forgetting = forgetting

    def settle(self, timeout: float = READ_TIMEOUT) -> bool:
        """Wait until the last run is forgotten, so that nothing of it meets the next one.

        Returns whether it was within `timeout` seconds. Raises: `Disconnected` and `MachineError`
        when ComfyUI did not forget it.
        """
        limit = time.monotonic() + timeout
        while self._forgetting is not None:
            left = limit - time.monotonic()
            try:
                self._forgetting.result(min(max(left, 0.0), TICK))
            except TimeoutError:
                if left <= 0:
                    return False
            else:
                self._forgetting = None
        return True

    def _care(self) -> None:
        """Forget the runs that have ended, and let go of a connection that waits for too long."""
        patience: float | None = KEPT
        while True:
            try:
                ended = self._ended.get(timeout=patience)
            except Empty:
                self._close_kept()
                patience = None
                continue
            if ended is None:
                return
            run_id, done = ended
            patience = KEPT
            try:
                self.forget(run_id)
            except (Disconnected, MachineError) as err:
                done.set_exception(err)
            else:
                done.set_result(None)

    def _close_kept(self) -> None:
        with contextlib.suppress(IndexError):
            self._kept.pop().close()

    def submit(
        self,
        workflow_json: Mapping[str, Any],
        run_id: str,
        extra_data: Mapping[str, Any] | None = None,
        *,
        client_id: str | None = None,
        timeout: float = SLOW_READ_TIMEOUT,
    ) -> None:
        """Queue the workflow (API format) as prompt `run_id`.

        Its messages go to the client of the given name, by default that of the run's own name.
        ComfyUI has `timeout` seconds for its answer, or `SLOW_READ_TIMEOUT` where that is less.

        Raises: `InvalidWorkflow` with every problem that ComfyUI sees. Then nothing is left in the
        queue. `ValueError` when `run_id` is no UUID in lower case.
        """
        if str(uuid.UUID(run_id)) != run_id:
            raise ValueError(f"{run_id!r} is not a UUID as ComfyUI takes it")
        body = {
            "prompt": workflow_json,
            "client_id": run_id if client_id is None else client_id,
            "prompt_id": run_id,
            "extra_data": extra_data or {},
        }
        answer = self._ask("POST", "/prompt", min(timeout, SLOW_READ_TIMEOUT), body)
        if answer.status == http.client.REQUEST_ENTITY_TOO_LARGE:
            what = "It is larger than ComfyUI takes."
            raise InvalidWorkflow([Problem("too_large", what)])
        if answer.status not in (http.client.OK, http.client.BAD_REQUEST):
            raise unexpected(answer)
        problems = tuple(problems_of(parsed(answer.content), workflow_json))
        if answer.ok and problems:
            # The outputs that are valid would run; half a result is not what was asked for.
            self.cancel(run_id)
        if problems:
            raise InvalidWorkflow(problems)
        if not answer.ok:
            raise unexpected(answer)

    def cancel(self, run_id: str) -> bool:
        """Take a waiting run out of the queue or interrupt a running one; whether there was one.

        A running node stops when it next looks, which some never do.
        """
        answer = self._done("POST", f"/api/jobs/{run_id}/cancel", None, {})
        return bool(parsed(answer)["cancelled"])

    def history(self, run_id: str) -> dict[str, Any] | None:
        """`{prompt, outputs, status, meta}` of a run that has ended; None before, or if unknown."""
        entry: dict[str, Any] | None = self._get(f"/history/{run_id}").get(run_id)
        return entry

    def queue(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Ids of the running and of the waiting prompts."""
        answer = self._get("/queue")
        running, pending = (
            tuple(str(item[1]) for item in answer[key])
            for key in ("queue_running", "queue_pending")
        )
        return running, pending

    def free(self) -> None:
        """Let the server drop its models and cached results once the current run is over."""
        self._done("POST", "/free", None, {"unload_models": True, "free_memory": True})

    def devices(self) -> tuple[Mapping[str, Any], ...]:
        """What ComfyUI computes on, the main one first: `name`, and in bytes `vram_total` and
        `vram_free`."""
        return tuple(self._get("/system_stats")["devices"])

    def forget(self, run_id: str) -> None:
        """Delete the run from the history; an unknown one is no error."""
        self._done("POST", "/history", None, {"delete": [run_id]})

    def _get(self, path: str, timeout: float | None = None) -> dict[str, Any]:
        return parsed(self._done("GET", path, timeout))

    def _done(
        self, method: str, path: str, timeout: float | None, body: Mapping[str, Any] | None = None
    ) -> bytes:
        """What ComfyUI answers when it has done what it was asked."""
        answer = self._ask(method, path, READ_TIMEOUT if timeout is None else timeout, body)
        if not answer.ok:
            raise unexpected(answer)
        return answer.content

    def _ask(
        self, method: str, path: str, timeout: float, body: Mapping[str, Any] | None = None
    ) -> Answer:
        content = b"" if body is None else json.dumps(body).encode()
        return self._http.ask(method, path, timeout, content)


def unexpected(answer: Answer) -> MachineError:
    """The error for an answer that should not come."""
    return MachineError(f"ComfyUI answered {answer.request} with status {answer.status}.")


def problems_of(answer: Mapping[str, Any], workflow: Mapping[str, Any]) -> Iterator[Problem]:
    """What `POST /prompt` says is wrong, in the workflow's order, without its tracebacks.

    The details of the error as a whole only repeat those of output nodes, so the nodes' own errors
    are taken where there are any.
    """
    by_node = answer.get("node_errors") or {}
    place = {node_id: place for place, node_id in enumerate(workflow)}
    for node_id in sorted(by_node, key=lambda node_id: place.get(node_id, len(place))):
        title = title_of(workflow.get(node_id), by_node[node_id]["class_type"])
        for error in by_node[node_id]["errors"]:
            yield problem_of(error, node_id, title)
    if "error" in answer and not by_node:
        error = answer["error"]
        about = error.get("extra_info") or {}
        node_id = str(about.get("node_id") or "")
        class_type = str(about.get("class_type") or "")
        yield problem_of(error, node_id, title_of(workflow.get(node_id), class_type))


def problem_of(error: Mapping[str, Any], node_id: str, title: str) -> Problem:
    """One error of ComfyUI: `{type, message, details, extra_info}`."""
    name = str((error.get("extra_info") or {}).get("input_name") or "")
    message = str(error["message"]).strip()
    details = str(error.get("details") or "").strip()
    # The details mostly begin with the input's name, which for dynamic inputs is its last part.
    for prefix in {name, name.rpartition(".")[2]} - {""}:
        for separator in (": ", ", ", " - "):
            details = details.removeprefix(prefix + separator)
        if details == prefix:
            details = ""
    what = f"{message}: {details}" if details and details not in message else message
    return Problem(
        code=str(error["type"]),
        what=what[:500] + ("" if what.endswith((".", "!", "?")) else "."),
        node_id=node_id,
        title=title,
        input=name,
    )


def title_of(node: object, class_type: str) -> str:
    """The node's title, or its class when it has none."""
    match node:
        case {"_meta": {"title": str(title)}} if title:
            return title
    return class_type
