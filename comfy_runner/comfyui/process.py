"""The supervised ComfyUI child: started, waited for, read, and ended with all it started."""

import atexit
import http.client
import json
import logging
import math
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from comfy_runner.comfyui import arguments, forking, lazy, memory, speed, tuning
from comfy_runner.comfyui.child import Child, Guarded
from comfy_runner.comfyui.device import choose_device
from comfy_runner.comfyui.forking import Forked
from comfy_runner.comfyui.inside import IMPORT_TIMES, READY, digest
from comfy_runner.comfyui.phases import Phase, boot_phases
from comfy_runner.config import Config
from comfy_runner.errors import Crashed, StartFailed, describe_exit

log = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parent
PORT_ATTEMPTS = 4

ASK_AFTER = 1.0
"""Seconds without a word from a booting ComfyUI after which it is asked."""

MOMENT = 0.05
"""Seconds between the word of a ComfyUI and what it is about, where it is not at once."""

PASSED_ON = re.compile(
    "PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|LC_.*|TZ|TMPDIR|TEMP|TMP|LD_LIBRARY_PATH|LD_PRELOAD"
    "|CUDA_.*|NVIDIA_.*|NCCL_.*|CUBLAS_.*|CUDNN_.*|HIP_.*|ROCR_.*|HSA_.*|PYTORCH_.*|TORCH.*|TRITON_.*"
    "|OMP_.*|MKL_.*|OPENBLAS_.*|NUMEXPR_.*|KMP_.*|GOMP_.*"
    "|VIRTUAL_ENV|PYTHONPYCACHEPREFIX|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE"
    "|XDG_.*|HF_HOME|HF_HUB_CACHE|HF_HUB_OFFLINE|HF_ENDPOINT"
)
SECRET = re.compile("TOKEN|KEY|SECRET|PASS|CREDENTIAL|AUTH")


OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
"""Keeps huggingface_hub 2.4, transformers 5 and datasets from asking the hub for anything."""


def child_environment(environment: Mapping[str, str], *, hub: bool = False) -> dict[str, str]:
    """The part of `environment` that ComfyUI gets, since core nodes can print what they have.

    Hugging Face can be asked only with `hub`: a node pack that fetches a model in the middle of a
    run is neither verified nor counted. PYTHONDONTWRITEBYTECODE is not passed on: without a
    bytecode cache a start takes twice as long.
    """
    passed = {
        name: value
        for name, value in environment.items()
        if PASSED_ON.fullmatch(name) and not SECRET.search(name)
    }
    return {**passed, **({} if hub else OFFLINE), "PYTHONUNBUFFERED": "1"}


def comfyui_environment(
    config: Config, environment: Mapping[str, str], *, is_lazy: bool
) -> dict[str, str]:
    """All variables of a ComfyUI that boots lazily or not, made of our `environment`."""
    ours = dict(tuning.variables(config.cache, config.torch))
    if is_lazy:
        ours[lazy.VARIABLE] = "1"
    return {**ours, **child_environment(environment, hub=config.hub_at_run_time)}


def early_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Those variables of a ComfyUI that its fork server needs, too.

    The others are read later, if at all, and need not be the same for all.
    """
    later = (*tuning.CACHES, speed.VARIABLE)
    return {name: value for name, value in environment.items() if name not in later}


def can_fork(config: Config, device: str) -> bool:
    """Whether ComfyUI is to be forked where it computes on this device.

    What main.py sets before torch is imported is for GPUs, and CUDA does not outlive a fork.
    """
    return config.fork_server and device == "cpu" and sys.platform == "linux"


def import_ahead(config: Config, environment: Mapping[str, str] = os.environ) -> None:
    """Have what a start needs imported from now on, where ComfyUI will be forked.

    The imports are not waited for. Which device ComfyUI gets is asked first, see `choose_device`,
    which may take its time. What goes wrong is told by the start.
    """
    if can_fork(config, choose_device(config, environment)[0]):
        variables = comfyui_environment(config, environment, is_lazy=config.lazy_boot)
        with suppress(OSError):
            forking.shared(early_environment(variables))


class ComfyProcess:
    """ComfyUI in a folder of its own: started, waited for, watched and ended, from any thread."""

    def __init__(
        self, config: Config, folder: Path, environment: Mapping[str, str] = os.environ
    ) -> None:
        """Nothing is started or written yet.

        `folder` is made when needed; it holds what ComfyUI reads and writes, and its owner removes
        it. `environment` is where the child's variables are chosen from.

        Raises: `InvalidInput` for arguments in the settings that ComfyUI must not be given.
        """
        arguments.check(config.comfyui_args, config.device)
        self.config = config
        self.folder = folder.absolute()
        self.input = self.folder / "input"
        self.output = self.folder / "output"
        self.temp = self.folder / "temp"
        self.port = 0
        self.device = ""
        """`cpu` or `cuda`; empty before the first start."""
        self.low_memory = False
        """Whether ComfyUI was started to use as little GPU memory as it can; slow."""
        self.import_times: Path | None = None
        """File into which a start writes what it imports, see `import_times.read`. None: it does
        not; else it is not forked."""
        self.token = ""
        """What every request must carry, a new one for each start; the child does not know it."""
        self.comfyui_pid: int | None = None
        """Process id of ComfyUI itself, once it has answered."""
        self._kills = 0
        """How often the kernel had run out of memory when ComfyUI was started."""
        self._environment = environment
        self._lock = threading.RLock()
        self._child: Child | None = None
        self._wanted = False
        self._began = 0.0
        """When the last start began, by `time.monotonic`."""
        self._cut_short = False
        """Whether the last start was lazy or forked."""
        self._is_lazy = False
        self._plain = False
        """Whether no other start is to be so, since one failed."""
        self._forks = True
        """Whether a fork may be asked for; no longer when that was not possible."""

    @property
    def base_url(self) -> str:
        """Where the server answers; changes with each start."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        """Whether the process runs; it may still be starting."""
        child = self._child
        return child is not None and child.started.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How the last process ended, negative for a signal; None while it runs or before."""
        child = self._child
        return None if child is None else child.started.poll()

    @property
    def pid(self) -> int | None:
        """Process id of what ends with ComfyUI, its guard or itself; None before there is one."""
        return None if self._child is None else self._child.started.pid or None

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases of the last start that are over, in their order, with its node packs.

        `interpreter` lasts until ComfyUI's process runs our launcher, `torch` until that is
        imported, which what is forked has behind it; `ComfyUI` until all of it is imported, `nodes`
        until all node classes are there, `ready` until it answers.
        """
        child = self._child
        return () if child is None else boot_phases(self._began, child.phases, child.packs)

    @property
    def is_lazy(self) -> bool:
        """Whether the last start put imports off."""
        return self._is_lazy

    @property
    def is_forked(self) -> bool:
        """Whether the last start was from a fork server."""
        return self._child is not None and isinstance(self._child.started, Forked)

    @property
    def has_failed_shortened(self) -> bool:
        """Whether a lazy or forked start has failed, so that none is tried any more."""
        return self._plain

    def tail(self, count: int = 20) -> tuple[str, ...]:
        """The last lines that ComfyUI printed, oldest first, at most 200; see `forget_lines`."""
        child = self._child
        if child is None:
            return ()
        if child.started.poll() is not None:
            child.finish_reading()
        return tuple(child.lines)[-count:]

    def ends_within(self, timeout: float) -> bool:
        """Whether the process has ended, or does so within `timeout` seconds.

        Its port is closed a moment before it has ended.
        """
        child = self._child
        if child is None:
            return True
        try:
            child.started.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def memory(self) -> int | None:
        """Bytes of memory that ComfyUI holds now; None where that is not known."""
        pid = self.comfyui_pid
        return memory.held(pid) if pid is not None and self.alive else None

    def crashed(self, when: str) -> Crashed:
        """The error for a ComfyUI that ended `when` it was needed, such as "during the run".

        With its very last lines, and what is known of the memory when it was killed.
        """
        child = self._child
        if child is None:
            return Crashed(None, (), when)
        exit_code = child.started.poll()
        if exit_code is not None:
            child.finish_reading()
        return Crashed(exit_code, child.last_words(), when + self._killer(child, exit_code))

    def stuck_at(self) -> tuple[str, ...]:
        """The calls in which the running node is, innermost first; empty when there is none.

        Takes up to 2 s, and works while a node keeps the interpreter to itself.
        """
        child = self._child
        return child.stack("prompt_worker") if child is not None and self.alive else ()

    def forget_lines(self) -> None:
        """Let `tail` begin anew: what one caller's run printed is no business of the next's."""
        if self._child is not None:
            self._child.lines.clear()

    def start(self, *, low_memory: bool = False) -> None:
        """Start the process, which then boots on its own; `wait_ready` follows it.

        With `low_memory` it keeps no model and no result in memory that the next step can do
        without.

        Raises: `StartFailed` when there is no ComfyUI, a folder cannot be written, or the process
        cannot be started. `RuntimeError` when it runs already.
        """
        with self._lock:
            if self.alive:
                raise RuntimeError("ComfyUI runs already")
            if not (self.config.comfyui / "main.py").is_file():
                raise StartFailed(
                    f"There is no ComfyUI in {self.config.comfyui}. Run script/bootstrap."
                )
            self.device, reason = choose_device(self.config, self._environment)
            log.info("ComfyUI computes on %s: %s", self.device, reason)
            self._wanted = True
            self.low_memory = low_memory
            atexit.unregister(self.stop)
            atexit.register(self.stop)
            self._spawn()

    def wait_ready(
        self, timeout: float, *, since: float | None = None, until: float = math.inf
    ) -> bool:
        """Return True when ComfyUI answers and its worker runs; at most `timeout` seconds.

        They count `since` a moment of `time.monotonic`, `None` for now. False when it is not ready
        by the moment `until`; it goes on starting.

        Raises: `StartFailed` with the last lines printed, at once when the process ends. Out of
        time, the process is killed.
        """
        deadline = (time.monotonic() if since is None else since) + timeout
        attempt = 1
        while True:
            child = self._child
            if child is None:
                raise StartFailed("ComfyUI was not started.")
            # It says when it is ready; one that cannot is asked now and then.
            now = time.monotonic()
            said = child.spoke.wait(max(0.0, min(ASK_AFTER, deadline - now, until - now)))
            exit_code = child.started.poll()
            if exit_code is None:
                if self._answers(child):
                    child.spoke.wait(MOMENT)  # its word may not have been read yet
                    return True
                now = time.monotonic()
                if now > deadline:
                    calls = child.stack("<module>") if self.alive else ()
                    self.stop()
                    if self._cut_short and not self._has_been_ready(child):
                        self._plain = True
                        log.warning("ComfyUI's next start will not be shortened.")
                    what = f"ComfyUI did not answer within {timeout:.0f} s."
                    self._fail(child, what, calls)
                if now > until:
                    return False
                if said:
                    with suppress(subprocess.TimeoutExpired):
                        child.started.wait(MOMENT)
                continue
            child.finish_reading()
            with self._lock:
                if not self._wanted:
                    raise StartFailed("ComfyUI was stopped while it started.")
                if self._child is not child:  # another thread started it again
                    continue
                if attempt < PORT_ATTEMPTS and self._lost_port(child):
                    log.warning("port %d was taken while ComfyUI started; once more", self.port)
                    attempt += 1
                    self._spawn()
                    continue
                if self._cut_short and not self._has_been_ready(child):
                    self._boot_plainly(child, exit_code)
                    continue
            how = f"{self._killer(child, exit_code)} ({describe_exit(exit_code)})."
            self._fail(child, f"ComfyUI ended while it started{how}")

    def boots_plainly(self) -> bool:
        """Whether a shortened boot failed while nobody waited for it; ComfyUI boots again then.

        Raises: `StartFailed` when that cannot be started.
        """
        with self._lock:
            child = self._child
            exit_code = None if child is None else child.started.poll()
            if child is None or exit_code is None or not self._wanted or not self._cut_short:
                return False
            child.finish_reading()
            if self._has_been_ready(child) or self._lost_port(child):
                return False
            self._boot_plainly(child, exit_code)
            return True

    def _lost_port(self, child: Child) -> bool:
        """Whether somebody else got the port that was free."""
        taken = f"Port {self.port} is already in use"
        return any(taken in line for line in child.lines)

    def _boot_plainly(self, child: Child, exit_code: int) -> None:
        """Start ComfyUI again in the usual way, and tell why.

        That somebody killed it, once there was a process, says nothing about the way.
        """
        is_killed = exit_code == -signal.SIGKILL and bool(child.started.pid)
        log.warning(
            "ComfyUI ended while it booted in a shortened way (%s); it boots as usual %s.%s",
            describe_exit(exit_code),
            "now" if is_killed else "from now on",
            "".join(f" Its last line was: {line}" for line in child.last_words(1)),
        )
        self._plain = True
        try:
            self._spawn()
        finally:
            self._plain = not is_killed
        if self._plain:
            forking.close_idle()

    def stop(self) -> None:
        """Kill ComfyUI and everything it started; nothing happens when it does not run."""
        with self._lock:
            self._wanted = False
            if self._child is not None:
                self._child.end()
            atexit.unregister(self.stop)

    def restart(self, *, low_memory: bool = False) -> None:
        """`stop`, then `start` in the same folder: inputs and outputs stay, `temp` is emptied."""
        with self._lock:
            self.stop()
            self.start(low_memory=low_memory)

    def _spawn(self) -> None:
        if self._child is not None:
            self._child.end()
        try:
            self._prepare_folders()
            self.port = free_port()
            self.token = secrets.token_urlsafe(32)
            self.comfyui_pid = None
            self._kills = memory.kills()
            self._began = time.monotonic()
            self._child = Child(self._launch())
        except OSError as err:
            raise StartFailed(f"ComfyUI could not be started: {err}") from err

    def _launch(self) -> Guarded | Forked:
        """A new ComfyUI, in the shortest way that is allowed. Raises: `OSError`."""
        config, tree = self.config, self.config.comfyui
        is_lazy = config.lazy_boot and not self._plain
        environment = comfyui_environment(config, self._environment, is_lazy=is_lazy)
        early = early_environment(environment)
        if self.import_times is not None:
            environment[IMPORT_TIMES] = str(self.import_times.absolute())
        known, arguments = digest(self.token), self._arguments()
        self._cut_short = self._is_lazy = is_lazy
        may_fork = self._forks and self.import_times is None and not self._plain
        if may_fork and can_fork(config, self.device):
            try:
                forked = forking.fork(early, environment, tree, known, arguments)
            except OSError as err:
                log.warning("ComfyUI is started without a fork server from now on: %s", err)
                self._forks = False
            else:
                self._cut_short = True
                return forked
        launcher = (str(HERE / "launcher.py"), str(tree), known)
        return Guarded([sys.executable, "-P", *launcher, *arguments], tree, environment)

    def _prepare_folders(self) -> None:
        # Without custom_nodes ComfyUI 0.30 ends at once (main.py execute_prestartup_script).
        own = [self.folder / name for name in ("custom_nodes", "user")]
        for folder in (*own, self.input, self.output, self.temp, self.config.models):
            folder.mkdir(parents=True, exist_ok=True)
        # JSON is YAML, and quotes any path.
        custom_nodes = self.config.custom_nodes.absolute()
        paths = {"custom_nodes": str(custom_nodes)} if custom_nodes.is_dir() else {}
        self._paths_file.write_text(json.dumps({"comfy_runner": paths}))

    @property
    def _paths_file(self) -> Path:
        return self.folder / "model_paths.yaml"

    def _arguments(self) -> list[str]:
        return [
            *("--base-directory", str(self.folder)),
            *("--models-directory", str(self.config.models.absolute())),
            *("--extra-model-paths-config", str(self._paths_file)),
            *("--database-url", "sqlite:///:memory:"),
            *("--disable-api-nodes", "--disable-auto-launch"),
            *("--preview-method", "none"),
            *arguments.fitted(
                self.config.comfyui_args, cpu=self.device == "cpu", low_memory=self.low_memory
            ),
            # The last ones count: nobody else is to be listened to.
            *("--listen", "127.0.0.1", "--port", str(self.port)),
        ]

    def answers(self) -> bool:
        """Whether ComfyUI is ready now; asked over HTTP, for a second at most."""
        child = self._child
        return child is not None and self.alive and self._answers(child)

    def _answers(self, child: Child) -> bool:
        """Whether it is this child that answers on the port, and its worker runs."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1.0)
        try:
            headers = {"Authorization": f"Bearer {self.token}"}
            connection.request("GET", "/comfy_runner/health", headers=headers)
            health = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError):
            return False
        finally:
            connection.close()
        # Another ComfyUI may have got the port: the parent of ours is known.
        match health:
            case {"worker_alive": True, "guard": child.started.parent}:
                self.comfyui_pid = health.get("pid")
                return True
        return False

    def _has_been_ready(self, child: Child) -> bool:
        """Whether it has booted: whatever ended it then was not the way it did so."""
        said = any(name == READY for name, _ in child.phases)
        return said or self.comfyui_pid is not None

    def _killer(self, child: Child, exit_code: int | None) -> str:
        """Who has killed the process and why, as far as that can be known; for a sentence."""
        if exit_code != -signal.SIGKILL or child.most_memory is None:
            return ""
        who = "from outside, perhaps because memory ran out"
        if memory.kills() > self._kills:
            who = "by the system, which ran out of memory"
        there_is = memory.available()
        of = "" if there_is is None else f" of the {memory.figure(there_is)} that there are"
        return f", killed {who}: it held up to {memory.figure(child.most_memory)}{of}"

    def _fail(self, child: Child, what: str, calls: Sequence[str] = ()) -> None:
        if child.loading:
            what += f" It was loading the node pack {child.loading}."
        text = "".join(f"\n  | {line}" for line in child.last_words()) or " It was silent."
        if calls:
            text += "\nIt was here, innermost call first:"
            text += "".join(f"\n  | {call}" for call in calls)
        raise StartFailed(what + text)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
