"""One measured start of ComfyUI: its phases, what it imports, and what would make it shorter."""

import shlex
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from comfy_runner.comfyui import bytecode, import_times
from comfy_runner.comfyui.import_times import ImportTimes
from comfy_runner.comfyui.phases import Phase
from comfy_runner.comfyui.process import ComfyProcess
from comfy_runner.config import Config
from comfy_runner.errors import StartFailed
from comfy_runner.weights.weight import human_size

SLOW_PACK = 0.2
"""Seconds from which on a node pack is worth a line in `gains`."""

WORTH_TELLING = 0.05
"""Seconds below which nothing is worth a line there, and no package is named."""

MUCH_READ = 100_000_000
"""Bytes from the disk from which on it counts."""

NAMED = 3
"""How many packages a line names."""


@dataclass(frozen=True, slots=True)
class Gain:
    """One thing that would make starts shorter."""

    seconds: float
    """How much, at most."""
    what: str
    """What takes the time, in a sentence."""
    cure: str
    """The setting or command, and where it counts."""


@dataclass(frozen=True, slots=True)
class Boot:
    """A start of ComfyUI that came to its end."""

    config: Config
    device: str
    """`cpu` or `cuda`."""
    is_lazy: bool
    """Whether imports were put off."""
    is_forked: bool
    """Whether it was from a fork server."""
    phases: tuple[Phase, ...]
    times: ImportTimes | None
    """What it imported; None where that was not asked for."""

    @property
    def began(self) -> float:
        """By `time.monotonic`."""
        return self.phases[0].began

    @property
    def seconds(self) -> float:
        """Until ComfyUI answered."""
        return self.phases[-1].ended - self.began

    @property
    def packs(self) -> tuple[tuple[str, float], ...]:
        """Each node pack with the seconds that its scripts and nodes took, the slowest first."""
        seconds: Counter[str] = Counter()
        for phase in self.phases:
            for pack in phase.parts:
                seconds[pack.name] += pack.seconds  # type: ignore[assignment] # it adds floats, too
        return tuple(seconds.most_common())

    @property
    def why_not_lazy(self) -> str:
        """Why it imported everything at once; empty when it did not."""
        if self.is_lazy:
            return ""
        return GIVEN_UP if self.config.lazy_boot else "COMFY_RUNNER_LAZY_BOOT is off"

    @property
    def why_not_forked(self) -> str:
        """Why it was not from a fork server; empty when it was."""
        if self.is_forked:
            return ""
        return self.why_never_forked or (GIVEN_UP if self.times is None else NOT_MEASURED)

    @property
    def why_never_forked(self) -> str:
        """Why no start of this ComfyUI is forked, measured or not; empty where they are."""
        if not self.config.fork_server:
            return "COMFY_RUNNER_FORK_SERVER is off"
        has_failed = self.config.lazy_boot and not self.is_lazy
        return self._why_impossible or (GIVEN_UP if has_failed else "")

    @property
    def _why_impossible(self) -> str:
        if self.device != "cpu":
            return "ComfyUI computes on a GPU, and CUDA does not outlive a fork"
        return "" if sys.platform == "linux" else "only Linux has it"

    def packages(self) -> tuple[tuple[str, int, float], ...]:
        """Each imported package, its modules and its own seconds, the slowest first."""
        modules: dict[str, int] = {}
        seconds: dict[str, float] = {}
        for each in self.times.packages if self.times else ():
            modules[each.name] = modules.get(each.name, 0) + each.modules
            seconds[each.name] = seconds.get(each.name, 0.0) + each.seconds
        slowest = sorted(seconds, key=lambda name: -seconds[name])
        return tuple((name, modules[name], seconds[name]) for name in slowest)

    def packages_of(self, pack: str) -> tuple[tuple[str, float], ...]:
        """What was imported first by a node pack, with its own seconds, the slowest first.

        The pack's own code is among it, under the pack's name.
        """
        rows = self.times.packages if self.times else ()
        return tuple((each.name, each.seconds) for each in rows if each.pack == pack)

    def as_json(self) -> dict[str, Any]:
        """All of it for a program; `start` is in seconds since the beginning."""
        told: dict[str, Any] = {
            "seconds": self.seconds,
            "device": self.device,
            "lazy_boot": {"used": self.is_lazy, "why_not": self.why_not_lazy},
            "fork_server": {"used": self.is_forked, "why_not": self.why_not_forked},
            "phases": [
                {**self._row(phase), "packs": [self._row(part) for part in phase.parts]}
                for phase in self.phases
            ],
        }
        if self.times is not None:
            told["profile"] = {
                "packs": [
                    {"name": name, "seconds": seconds, "packages": dict(self.packages_of(name))}
                    for name, seconds in self.packs
                ],
                "packages": [
                    {"name": name, "modules": modules, "seconds": seconds}
                    for name, modules, seconds in self.packages()
                ],
                "compiled": [asdict(each) for each in self.times.compiled],
                "deferrable": [asdict(each) for each in self.times.deferrable],
                "cpu_seconds": self.times.cpu,
                "disk_bytes": self.times.disk,
            }
            told["gains"] = [asdict(gain) for gain in gains(self)]
        return told

    def _row(self, phase: Phase) -> dict[str, Any]:
        share = phase.seconds / self.seconds if self.seconds else 0.0
        start = phase.began - self.began
        return {"name": phase.name, "start": start, "seconds": phase.seconds, "share": share}


GIVEN_UP = "a shortened start has failed"
NOT_MEASURED = "not to measure this, so that all imports are in it"


def measure(config: Config, *, profile: bool = False) -> Boot:
    """Start ComfyUI, wait until it answers, and end it.

    With `profile` it tells what it imports; then it is not forked, so that nothing is imported
    before it.

    Raises: `StartFailed`, and `InvalidInput` for arguments that ComfyUI must not be given.
    """
    with tempfile.TemporaryDirectory(prefix="comfy-runner-boot-") as folder:
        process = ComfyProcess(config, Path(folder, "run"))
        written = Path(folder, "import_times.json")
        process.import_times = written if profile else None
        try:
            process.start()
            process.wait_ready(config.boot_timeout)
            phases = process.phases
            times = import_times.read(written) if profile else None
        except OSError as err:
            raise StartFailed(f"ComfyUI did not tell what it imported: {err}") from err
        finally:
            process.stop()
    if not phases:
        raise StartFailed("ComfyUI did not tell how it started.")
    return Boot(config, process.device, process.is_lazy, process.is_forked, phases, times)


def gains(boot: Boot) -> tuple[Gain, ...]:
    """What would make starts shorter, the most first; only for one that was profiled."""
    if boot.times is None:
        return ()
    found = [
        *_packs(boot, boot.times),
        *_bytecode(boot, boot.times),
        *_lazy_boot(boot, boot.times),
        *_fork_server(boot),
        *_disk(boot, boot.times),
    ]
    return tuple(sorted(found, key=lambda gain: -gain.seconds))


def _packs(boot: Boot, times: ImportTimes) -> Iterator[Gain]:
    for name, seconds in boot.packs:
        pulled = {each.name: each.seconds for each in times.deferrable if each.pack == name}
        if seconds < SLOW_PACK and sum(pulled.values()) < WORTH_TELLING:
            continue
        imported = [row for row in boot.packages_of(name) if row[0] != name]
        what = f"The node pack {name} takes {seconds:.2f} s to load{_named(imported)}."
        cure = f"Where no workflow needs it, take it out of {boot.config.custom_nodes}."
        if pulled and boot.is_lazy:
            what += f" A lazy boot would do without {', '.join(pulled)}."
            cure += " Where one does, let it import that inside of its functions."
        yield Gain(seconds, what, cure)


def _bytecode(boot: Boot, times: ImportTimes) -> Iterator[Gain]:
    seconds = sum(each.seconds for each in times.compiled)
    if seconds < WORTH_TELLING:
        return
    files = [Path(each.file) for each in times.compiled]
    count = sum(each.modules for each in times.compiled)
    named = _named([(each.name, each.seconds) for each in times.compiled])
    what = f"{count} modules had no bytecode and were compiled{named}."
    folders = sorted({str(_folder(boot.config, file)) for file in files})
    command = shlex.join([sys.executable, "-m", bytecode.__name__, *folders])
    if all(bytecode.is_compiled(file) for file in files):
        what += " It has been written, so that the next start here finds it."
        cure = f"Where each start begins with a new image, run in its build: {command}"
    else:
        what += " It could not be written, so that each start compiles them anew."
        cure = f"Run as somebody who may write there: {command}"
    yield Gain(seconds, what, cure)


def _lazy_boot(boot: Boot, times: ImportTimes) -> Iterator[Gain]:
    ours = [each for each in times.deferrable if not each.pack]
    seconds = sum(each.seconds for each in ours)
    if boot.is_lazy or seconds < WORTH_TELLING:
        return
    named = _named([(each.name, each.seconds) for each in ours])
    what = f"Packages were imported that most workflows never need{named}: {boot.why_not_lazy}."
    cure = "Set COMFY_RUNNER_LAZY_BOOT=true."
    if boot.config.lazy_boot:
        cure = "The log above tells why; where a node pack is to blame, take that out."
    yield Gain(seconds, what, cure)


def _fork_server(boot: Boot) -> Iterator[Gain]:
    seconds = sum(phase.seconds for phase in boot.phases if phase.name in ("interpreter", "torch"))
    if not boot.config.fork_server and not boot._why_impossible:  # noqa: SLF001
        what = f"Each start after the first imports torch anew: {boot.why_never_forked}."
        yield Gain(seconds, what, "Set COMFY_RUNNER_FORK_SERVER=true.")


def _disk(boot: Boot, times: ImportTimes) -> Iterator[Gain]:
    if times.disk is None or times.disk < MUCH_READ:
        return
    what = f"{human_size(times.disk)} came from the disk, and not from memory."
    cure = "A second start finds it in memory; else a faster disk, or a smaller image, helps."
    yield Gain(max(0.0, boot.seconds - times.cpu), what, cure)


def _named(rows: Sequence[tuple[str, float]]) -> str:
    """The slowest of these, for a sentence: ` (scipy 1.69 s, kornia 0.31 s)`."""
    slowest = sorted(rows, key=lambda row: -row[1])[:NAMED]
    told = [f"{name} {seconds:.2f} s" for name, seconds in slowest if seconds >= WORTH_TELLING]
    return f" ({', '.join(told)})" if told else ""


def _folder(config: Config, file: Path) -> Path:
    """The folder to compile so that this file is compiled."""
    libraries = (Path(sysconfig.get_path(name)) for name in ("purelib", "stdlib"))
    for folder in (config.custom_nodes, config.comfyui, *libraries):
        if file.is_relative_to(folder):
            return bytecode.left_out(file, folder) or folder
    return file.parent
