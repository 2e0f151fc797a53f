"""What the launcher adds to ComfyUI: a lock on its server, word of its boot, a watched worker.

Loaded by the launcher by path, in ComfyUI's process: only the standard library is imported here,
ComfyUI's modules are taken from `sys.modules`. Facts about ComfyUI are those of 0.30.0.
"""

import faulthandler
import hashlib
import hmac
import importlib.util
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

LOADING = "comfy_runner: loading node pack "
"""Begins a line that tells which pack is loaded from now on; none when nothing follows."""

WORKER_DIED = 70
"""Exit code of a ComfyUI whose worker thread died; EX_SOFTWARE of sysexits.h."""

FORBIDDEN = 403


def digest(token: str) -> str:
    """What ComfyUI's process knows of the token: whoever reads it there can do nothing with it."""
    return hashlib.sha256(f"Bearer {token}".encode()).hexdigest()


def lock(server: ModuleType, app: Any, known: str) -> None:
    """Let in only requests to our own address with the token whose `digest` is `known`.

    To be called when all node packs are loaded, since some put middleware of their own in front.
    ComfyUI itself asks nobody who he is, and takes a page for its own where the page's host is no
    loopback address (server.py create_origin_only_middleware), which a DNS answer can make so.
    """
    web = server.web
    address = f"127.0.0.1:{sys.modules['comfy.cli_args'].args.port}"

    @web.middleware  # type: ignore[untyped-decorator] # aiohttp is ComfyUI's
    async def only_ours(request: Any, handler: Callable[[Any], Any]) -> Any:
        given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
        is_known = hmac.compare_digest(hashlib.sha256(given).hexdigest(), known)
        if is_known and request.headers.getall("Host", []) == [address]:
            return await handler(request)
        refusal = web.Response(
            status=FORBIDDEN, text="This ComfyUI answers only the program that started it.\n"
        )
        refusal.force_close()  # what may follow in the body is not read
        return refusal

    app.middlewares.insert(0, only_ours)


class PackTeller:
    """Prints a `LOADING` line for each node pack before its first code is run.

    ComfyUI loads packs, and their prestartup scripts, through `spec_from_file_location` (nodes.py
    load_custom_node, main.py execute_prestartup_script).
    """

    def __init__(self) -> None:
        self._usual: Callable[..., Any] = importlib.util.spec_from_file_location
        self._told = ""

    def start(self) -> None:
        """Watch from now on."""
        importlib.util.spec_from_file_location = self._spec

    def stop(self) -> None:
        """All packs are loaded."""
        self.tell("")
        if importlib.util.spec_from_file_location == self._spec:
            importlib.util.spec_from_file_location = self._usual

    def tell(self, pack: str) -> None:
        """Say that this pack is loaded now; an empty name, that none is."""
        if pack != self._told:
            self._told = pack
            say(LOADING + pack)

    def _spec(self, name: str, location: Any = None, **more: Any) -> Any:
        if location is not None:
            pack = pack_of(Path(location))
            if pack:
                self.tell(pack)
        return self._usual(name, location, **more)


def pack_of(file: Path) -> str:
    """The node pack that begins with this file; empty for any other file."""
    folder_paths = sys.modules.get("folder_paths")
    if folder_paths is None:
        return ""
    places = {Path(path).absolute() for path in folder_paths.get_folder_paths("custom_nodes")}
    file = file.absolute()
    if file.parent in places:
        return file.name
    return file.parent.name if file.parent.parent in places else ""


def end_with_worker() -> None:
    """End the process when the thread that runs prompts dies, which ComfyUI would not notice.

    It then takes prompts for ever and runs none. A node that raises SystemExit is enough, and so
    are some prompts (main.py prompt_worker, which catches nothing).
    """
    usual = threading.excepthook

    def hook(died: threading.ExceptHookArgs) -> None:
        if died.thread is None or "prompt_worker" not in died.thread.name:
            usual(died)
            return
        told = traceback.format_exception(died.exc_type, died.exc_value, died.exc_traceback)
        say("".join(told) + "[ERROR] The thread that runs prompts died, and ComfyUI ends with it.")
        os._exit(WORKER_DIED)

    threading.excepthook = hook


def explain_on_request() -> None:
    """Print what every thread is doing on SIGUSR1, even while one keeps the interpreter to itself.

    The lines are `faulthandler`'s.
    """
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)


def say(text: str) -> None:
    """Print whole lines, whatever another thread or a progress bar has begun to print."""
    os.write(2, f"\n{text}\n".encode(errors="replace"))
