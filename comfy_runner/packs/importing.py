"""Packs tried in the real ComfyUI: which load, what they bring, and why the others do not."""

import re
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from comfy_runner.comfyui.client import ComfyClient
from comfy_runner.comfyui.process import ComfyProcess
from comfy_runner.config import Config
from comfy_runner.errors import ComfyRunnerError, StartFailed

KEPT_LINES = 200
"""Lines of ComfyUI's log that are looked through: all that `ComfyProcess` keeps."""

SHOWN_LINES = 12
"""Lines of a traceback that are told, the last ones."""

Tell = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Tried:
    """How one pack loaded."""

    name: str
    ok: bool
    classes: tuple[str, ...] = ()
    """Node classes that it brought, sorted."""
    seconds: float | None = None
    """That ComfyUI took to import it; None where it did not get that far."""
    why: str = ""
    """The last lines about its failure; of a start-up script, also where it loaded all the same."""


@dataclass(frozen=True, slots=True)
class _Boot:
    """What one start of ComfyUI told."""

    lines: tuple[str, ...]
    classes: dict[str, list[str]] = field(default_factory=dict)
    failure: StartFailed | None = None
    timed_out: bool = False


def try_packs(
    config: Config, names: Sequence[str], *, limit: float, tell: Tell = lambda _: None
) -> tuple[Tried, ...]:
    """Load packs of `config.custom_nodes` in a ComfyUI of their own; in the order of `names`.

    All at once first; those that fail there once more each alone. A pack that ends ComfyUI, or
    lets it hang for longer than `limit` seconds, keeps no other one from being tried. `tell` takes
    a line of progress. This runs the packs' code, as ComfyUI would.

    Raises: `StartFailed` where ComfyUI does not start even without packs; `Disconnected`.
    """
    found: dict[str, Tried] = {}
    together = list(names)
    while together:
        tell(f"Trying {_few(together)} in ComfyUI ...")
        boot = _start(config, together, limit)
        if boot.failure is None:
            told = {
                name: read_log(boot.lines, name, boot.classes.get(name, ())) for name in together
            }
            for name, tried in told.items():
                # Perhaps only beside another pack.
                again = not tried.ok and len(together) > 1
                found[name] = _alone(config, name, limit, tell) if again else tried
            break
        guilty = [name for name in together if _is_named(name, boot.failure)]
        if len(together) == 1 and not guilty:
            without = _start(config, [], limit)
            if without.failure is not None:
                raise without.failure
        for name in guilty or together:
            # Out of time, the pack that is named may only have been the last one.
            again = len(together) > 1 and (boot.timed_out or not guilty)
            found[name] = (
                _alone(config, name, limit, tell) if again else _failed(name, boot.failure)
            )
        together = [name for name in together if name not in found]
    return tuple(found[name] for name in names)


def _alone(config: Config, name: str, limit: float, tell: Tell) -> Tried:
    tell(f"Trying {name} alone ...")
    boot = _start(config, [name], limit)
    if boot.failure is not None:
        return _failed(name, boot.failure)
    return read_log(boot.lines, name, boot.classes.get(name, ()))


def _start(config: Config, names: Sequence[str], limit: float) -> _Boot:
    """Boot ComfyUI with just these packs and ask what there is."""
    only = ["--disable-all-custom-nodes"]
    if names:
        only += ["--whitelist-custom-nodes", *names]
    settings = replace(config, comfyui_args=(*config.comfyui_args, *only))
    with tempfile.TemporaryDirectory(prefix="comfy-runner-packs-") as folder:
        process = ComfyProcess(settings, Path(folder))
        deadline = time.monotonic() + limit
        try:
            process.start()
            process.wait_ready(limit)
        except StartFailed as err:
            late = time.monotonic() >= deadline
            return _Boot(process.tail(KEPT_LINES), failure=err, timed_out=late)
        else:
            with ComfyClient(process.base_url, process.token) as client:
                info = client.catalog()["object_info"]
            classes: dict[str, list[str]] = {}
            for class_type, definition in info.items():
                place, _, pack = str(definition.get("python_module", "")).partition(".")
                if place == "custom_nodes":
                    classes.setdefault(pack, []).append(class_type)
            return _Boot(process.tail(KEPT_LINES), classes)
        finally:
            process.stop()


def read_log(lines: Sequence[str], name: str, classes: Iterable[str] = ()) -> Tried:
    """How a pack loaded, from the log of a ComfyUI that started.

    Its lines are those of nodes.py `init_external_custom_nodes` and `load_custom_node`, and of
    main.py `execute_prestartup_script`, 0.30.0. `classes` are the pack's in `/object_info`.
    """
    path = f"/.*/{re.escape(name)}"
    seconds: float | None = None
    ok = False
    for line in lines:
        timed = re.search(rf" *([\d.]+) seconds( \(\w+ FAILED\))?: {path}$", line)
        if timed and timed[2] != " (PRESTARTUP FAILED)":
            seconds, ok = float(timed[1]), not timed[2]
    why = "\n".join(_about(lines, path))
    if seconds is None and not why:
        why = "ComfyUI did not look at it: it is no folder with an __init__.py."
    return Tried(name, ok, tuple(sorted(classes)), seconds, why)


def _about(lines: Sequence[str], path: str) -> list[str]:
    """The lines that tell why the pack at `path`, a pattern, failed."""
    found: list[str] = []
    for number, line in enumerate(lines):
        if re.search(rf"Failed to execute startup-script: {path}/| {path}[,: ]", line) is None:
            continue
        begin = number
        if "Cannot import" in line:
            heads = [n for n in range(number) if "Traceback (most recent call last):" in lines[n]]
            begin = heads[-1] if heads else number
        found += [*lines[begin:number][-SHOWN_LINES:], line]
    return found


def _failed(name: str, err: ComfyRunnerError) -> Tried:
    return Tried(name, ok=False, why=str(err))


def _is_named(name: str, err: StartFailed) -> bool:
    return f" It was loading the node pack {name}." in str(err)


def _few(names: Sequence[str]) -> str:
    shown = 4
    left = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {left} more" if left > 0 else "")
