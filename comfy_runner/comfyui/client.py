"""ComfyUI's HTTP and WebSocket interface, as far as one run needs it; facts are those of 0.30.0."""

import json
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Self
from urllib.parse import quote, urlsplit

import requests
import websocket

from comfy_runner.errors import InvalidWorkflow, MachineError, Problem
from comfy_runner.fetch.transport import interruptible_session

Message = dict[str, Any] | bytes
"""A JSON message with `type` and `data`, or a binary frame: 4 bytes of kind, big-endian, first."""

CONNECT_TIMEOUT = 3.0  # seconds
READ_TIMEOUT = 5.0
SLOW_READ_TIMEOUT = 120.0
"""Seconds for answers that need work: validation reads every input file of the prompt."""

SKIPPED = b'{"type": "progress_state"'
"""Begin of messages that repeat the state of all nodes: 18 MB in a run of 300 nodes."""


class Disconnected(ConnectionError):
    """The server closed the connection, refused it, or gave no answer in time."""


class Messages:
    """The messages of one run, in order; for one thread at a time. Close it, or use `with`."""

    def __init__(self, opened: websocket.WebSocket) -> None:
        self._socket = opened

    def receive(self, timeout: float) -> Message | None:
        """The next message; None when none came within `timeout` seconds.

        A frame that has come in part is kept and completed by a later call. `progress_state`
        messages are left out.

        Raises: `Disconnected` when the socket is closed. `MachineError` for text that is no JSON.
        """
        deadline = time.monotonic() + timeout
        while True:
            # 0 would mean "do not block" to the socket, which websocket-client takes for an error
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                kind, payload = self._socket.recv_data()
            except websocket.WebSocketTimeoutException:
                return None
            except (OSError, websocket.WebSocketException) as err:
                raise Disconnected(f"ComfyUI's socket broke: {err}") from err
            match kind:
                case websocket.ABNF.OPCODE_BINARY:
                    return bytes(payload)
                case websocket.ABNF.OPCODE_CLOSE:
                    raise Disconnected("ComfyUI closed the socket.")
            if not payload.startswith(SKIPPED):
                return parsed(payload)
            if time.monotonic() >= deadline:
                return None

    def close(self) -> None:
        """Close the socket; a run that goes on does so unheard."""
        self._socket.shutdown()  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ComfyClient:
    """One ComfyUI server. May be used by several threads.

    All methods raise `Disconnected` when the server cannot be reached or does not answer in time,
    and `MachineError` for an answer that ComfyUI is not known to give.
    """

    def __init__(self, base_url: str, token: str = "") -> None:
        """`base_url` is such as `http://127.0.0.1:8188`; nothing is sent yet.

        `token` is that of `ComfyProcess`, without which our ComfyUI answers nothing.
        """
        self.base_url = base_url.rstrip("/")
        self._authorization = {"Authorization": f"Bearer {token}"} if token else {}
        # A cancel must get through while ComfyUI keeps an answer back.
        self._session = interruptible_session(threading.Event())
        self._session.trust_env = False  # no proxy stands between us and our own child

    def close(self) -> None:
        """Close the connections that are kept open."""
        self._session.close()

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

    def connect(self, run_id: str) -> Messages:
        """The messages of the run that is submitted with this id afterwards.

        Only one connection at a time may be open for a run: closing an older one silences the
        newer one.
        """
        address = urlsplit(self.base_url)
        url = address._replace(scheme="ws", path="/ws", query=f"clientId={quote(run_id, safe='')}")
        try:
            # Opened here, because websocket-client would go through the environment's proxy.
            connection = socket.create_connection(
                (address.hostname or "", address.port or 80), CONNECT_TIMEOUT
            )
            opened = websocket.create_connection(
                url.geturl(),
                timeout=CONNECT_TIMEOUT,
                socket=connection,
                header=self._authorization,
                suppress_origin=True,  # it is a browser's word for which page asks
                skip_utf8_validation=True,
            )
        except (OSError, websocket.WebSocketException) as err:
            raise Disconnected(f"ComfyUI takes no socket: {err}") from err
        return Messages(opened)

    def submit(
        self,
        workflow_json: Mapping[str, Any],
        run_id: str,
        extra_data: Mapping[str, Any] | None = None,
    ) -> None:
        """Queue the workflow (API format) as prompt `run_id`, for the socket of that name.

        Raises: `InvalidWorkflow` with every problem that ComfyUI sees. Then nothing is left in the
        queue. `ValueError` when `run_id` is no UUID in lower case.
        """
        if str(uuid.UUID(run_id)) != run_id:
            raise ValueError(f"{run_id!r} is not a UUID as ComfyUI takes it")
        body = {
            "prompt": workflow_json,
            "client_id": run_id,
            "prompt_id": run_id,
            "extra_data": extra_data or {},
        }
        response = self._request("POST", "/prompt", SLOW_READ_TIMEOUT, body)
        if response.status_code == requests.codes.request_entity_too_large:
            what = "It is larger than ComfyUI takes."
            raise InvalidWorkflow([Problem("too_large", what)])
        if response.status_code not in (requests.codes.ok, requests.codes.bad_request):
            raise unexpected(response)
        problems = tuple(problems_of(parsed(response.content), workflow_json))
        if response.ok and problems:
            # The outputs that are valid would run; half a result is not what was asked for.
            self.cancel(run_id)
        if problems:
            raise InvalidWorkflow(problems)
        if not response.ok:
            raise unexpected(response)

    def cancel(self, run_id: str) -> bool:
        """Take a waiting run out of the queue or interrupt a running one; whether there was one.

        A running node stops when it next looks, which some never do.
        """
        response = self._request("POST", f"/api/jobs/{run_id}/cancel", READ_TIMEOUT, {})
        if not response.ok:
            raise unexpected(response)
        return bool(parsed(response.content)["cancelled"])

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
        self._post("/free", {"unload_models": True, "free_memory": True})

    def devices(self) -> tuple[Mapping[str, Any], ...]:
        """What ComfyUI computes on, the main one first: `name`, and in bytes `vram_total` and
        `vram_free`."""
        return tuple(self._get("/system_stats")["devices"])

    def forget(self, run_id: str) -> None:
        """Delete the run from the history; an unknown one is no error."""
        self._post("/history", {"delete": [run_id]})

    def _get(self, path: str, timeout: float = READ_TIMEOUT) -> dict[str, Any]:
        response = self._request("GET", path, timeout)
        if not response.ok:
            raise unexpected(response)
        return parsed(response.content)

    def _post(self, path: str, body: Mapping[str, Any]) -> None:
        response = self._request("POST", path, READ_TIMEOUT, body)
        if not response.ok:
            raise unexpected(response)

    def _request(
        self, method: str, path: str, timeout: float, body: Mapping[str, Any] | None = None
    ) -> requests.Response:
        try:
            return self._session.request(
                method,
                self.base_url + path,
                data=None if body is None else json.dumps(body).encode(),
                headers={"Content-Type": "application/json", **self._authorization},
                timeout=(CONNECT_TIMEOUT, timeout),
                allow_redirects=False,
            )
        except requests.Timeout as err:
            raise Disconnected(f"ComfyUI did not answer {method} {path} in time.") from err
        except requests.RequestException as err:
            raise Disconnected(f"ComfyUI cannot be reached: {err}") from err


def parsed(text: bytes) -> dict[str, Any]:
    """The JSON object in `text`. Raises: `MachineError`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise MachineError(f"ComfyUI sent something that is no JSON: {text[:100]!r}") from err
    if not isinstance(value, dict):
        raise MachineError(f"ComfyUI sent something that is no JSON object: {text[:100]!r}")
    return value


def unexpected(response: requests.Response) -> MachineError:
    """The error for an answer that should not come."""
    path = urlsplit(response.url).path
    return MachineError(
        f"ComfyUI answered {response.request.method} {path} with status {response.status_code}."
    )


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
