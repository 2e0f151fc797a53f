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
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

LOADING = "comfy_runner: loading node pack since "
"""Begins a line that tells which pack is loaded from when on, by `time.monotonic`; none when
nothing follows the moment."""

PHASE = "comfy_runner: end of phase "
"""Begins a line that tells which phase of a boot is over, and when, by `time.monotonic`."""

IMPORT_TIMES = "COMFY_RUNNER_IMPORT_TIMES"
"""Variable with the path of the file that tells what is imported, see `import_times`; nothing is
measured without it."""

OUR_PACK = "comfy_runner_nodes"
"""The pack of this project, which changes nothing in ComfyUI."""

SCRIPT = "prestartup_script.py"
"""What ComfyUI runs of each pack before it imports torch."""

READY = "ready"
"""The last phase: from its end on the server answers."""

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

    def __init__(self, before: Callable[[], object] = lambda: None) -> None:
        """`before` is called before a pack that is not ours is loaded."""
        self._before = before
        self._usual: Callable[..., Any] = importlib.util.spec_from_file_location
        self.told = ""
        """The pack that is loaded now; empty when none is."""

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
        if pack != self.told:
            self.told = pack
            say(f"{LOADING}{time.monotonic():.3f} {pack}")

    def _spec(self, name: str, location: Any = None, **more: Any) -> Any:
        pack = "" if location is None else pack_of(Path(location))
        if pack:
            if Path(pack).stem != OUR_PACK and pack != self.told:
                self._before()
            self.tell(pack)
        spec = self._usual(name, location, **more)
        if pack and Path(location).name == SCRIPT and spec is not None and spec.loader is not None:
            spec.loader = ScriptLoader(spec.loader, self)
        return spec


class ScriptLoader:
    """Runs a prestartup script as `loader` does, and tells its end: what comes next is ComfyUI."""

    def __init__(self, loader: Any, teller: PackTeller) -> None:
        self.loader = loader
        self.teller = teller
        self.create_module = loader.create_module

    def exec_module(self, module: ModuleType) -> None:
        """Run the script under its real loader."""
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        try:
            self.loader.exec_module(module)
        except Exception:  # which main.py logs; anything else ends the boot, in this pack
            self.teller.tell("")
            raise
        self.teller.tell("")


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


def keep_states(progress: ModuleType) -> None:
    """Have the states of all nodes not sent with each step of one: only an editor shows them.

    They are 18 MB for a chain of 300 nodes. What one node's progress is goes by other messages.
    """
    handler = progress.WebUIProgressHandler
    if not callable(handler._send_progress_state):  # noqa: SLF001 - or it has another name now
        raise TypeError("WebUIProgressHandler._send_progress_state is no function")
    handler._send_progress_state = lambda *_: None  # noqa: SLF001


def tell_phase(name: str) -> None:
    """Say that this phase of the boot ends now, and the next one begins."""
    say(f"{PHASE}{name} {time.monotonic():.3f}")


def say(text: str) -> None:
    """Print whole lines, whatever another thread or a progress bar has begun to print."""
    os.write(2, f"\n{text}\n".encode(errors="replace"))
