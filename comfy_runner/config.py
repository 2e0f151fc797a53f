"""All settings, read once from the environment: nothing else in the package looks at it."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from comfy_runner.errors import InvalidInput, Problem

PROJECT = Path(__file__).resolve().parent.parent
"""The folder that holds `predict.py`, `comfyui.toml` and `weights_manifest.json`."""

Device = Literal["auto", "cpu", "cuda"]

TORCH = ("tf32", "matmul=highest", "matmul=high", "matmul=medium", "cudnn_benchmark")
"""What the setting `torch` can say; `comfyui.speed` does it."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Where things are and how long they may take; folders need not exist yet."""

    project: Path = PROJECT
    """Folder of the model repository."""
    home: Path = PROJECT / ".comfy"
    """Folder for everything that is made at run time; safe to delete."""
    comfyui: Path = PROJECT / ".comfy" / "ComfyUI"
    """The ComfyUI source tree: the folder with `main.py`."""
    models: Path = PROJECT / ".comfy" / "models"
    """Folder with the model folders (`checkpoints`, `loras`, ...)."""
    manifest: Path = PROJECT / "weights_manifest.json"
    """The weights manifest."""
    custom_nodes: Path = PROJECT / "custom_nodes"
    """Folder with custom node packs."""
    device: Device = "auto"
    """What ComfyUI computes on; `auto` is the GPU where there is one."""
    comfyui_args: tuple[str, ...] = ()
    """More command-line arguments for ComfyUI; see `comfyui.arguments` for what cannot be given."""
    torch: tuple[str, ...] = ()
    """How torch may trade exactness for speed in ComfyUI, of `TORCH`; empty: as ComfyUI has it."""
    lazy_boot: bool = True
    """Whether ComfyUI boots without the packages that most workflows never need; they are imported
    when one does."""
    fork_server: bool = True
    """Whether a process that has imported torch is kept, which ComfyUI is forked from when it is
    started; only on Linux, and where ComfyUI computes on the CPU."""
    warm_up: Path | None = None
    """A workflow that is run once, with few steps, whenever a runner starts. None: none is."""
    preload: tuple[str, ...] = ()
    """Groups of the manifest, its weights as `folder/name`, and paths of workflows, whose models
    are fetched, and read into the page cache, while ComfyUI boots."""
    boot_timeout: float = 300.0
    """Seconds until ComfyUI must answer after its start."""
    run_timeout: float = 3600.0
    """Seconds that one run may take when the request sets no `timeout`."""
    stall_timeout: float = 900.0
    """Seconds that a run may go without any sign of progress."""
    max_input_bytes: int = 2 * 1024**3
    """Largest file, in bytes, that is taken as one input of a request."""
    max_weights_bytes: int | None = None
    """Most bytes of fetched weights that are kept; the least recently used ones go. None: as many
    as the disk holds."""
    disk_reserve: int = 512 * 1024**2
    """Bytes of the disk that weights leave free."""
    fetch_timeout: float = 7200.0
    """Seconds that fetching all weights of one run may take."""
    recheck_after: float = 600.0
    """Seconds after which the host of a fetched URL is asked whether its file has changed."""
    pget: str = "auto"
    """The `pget` program: `auto` looks for it on PATH, `off` uses our own fetcher alone."""
    allow_pickles: bool = False
    """Whether a caller's URL may lead to a weight that is no safetensors or gguf file: loading one
    can run its code."""
    private_addresses: bool = False
    """Whether URLs of a request may lead to this machine and to private networks."""
    allowed_hosts: tuple[str, ...] = ()
    """Patterns of the only hosts that URLs of a request may lead to, such as `*.hf.co`;
    empty for all."""
    max_child_memory: int | None = None
    """Bytes that ComfyUI may hold between runs before it is started anew. None: 90 % of the memory
    there is."""
    max_restarts: int = 5
    """How often in a row ComfyUI may end, hang or fail to start, without a run that succeeds,
    before the health check fails."""
    oom_retry: bool = True
    """Whether a run that is out of GPU memory is tried once more in a way that needs less."""
    allow_nodes: tuple[str, ...] = ()
    """Node classes that a workflow may use although the policy of nodes refuses them."""
    deny_nodes: tuple[str, ...] = ()
    """Node classes that no workflow may use."""
    only_nodes: tuple[str, ...] = ()
    """The only node classes that a workflow may use; empty for all that are not refused."""
    max_urls: int = 64
    """Most URLs that one request may have fetched; 0 for none at all."""
    hub_at_run_time: bool = False
    """Whether node packs may ask Hugging Face for models while a workflow runs."""
    hf_endpoint: str = "https://huggingface.co"
    """Where Hugging Face is; `HF_ENDPOINT` counts, too."""
    civitai_endpoint: str = "https://civitai.com"
    """Where CivitAI is."""
    replicate_endpoint: str = "https://replicate.com"
    """Where Replicate is."""

    @property
    def cache(self) -> Path:
        """Folder for saved catalogs, and for what torch compiles."""
        return self.home / "cache"

    @property
    def runs(self) -> Path:
        """Folder under which each started ComfyUI gets a folder of its own."""
        return self.home / "runs"

    def for_one_run(self) -> "Config":
        """The same settings for who starts ComfyUI for one workflow: no other one is made ready."""
        return replace(self, warm_up=None, preload=())

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Config":
        """The settings of this machine.

        Every field but `project` is `COMFY_RUNNER_` and its name in capitals, such as
        `COMFY_RUNNER_RUN_TIMEOUT`. An empty variable counts as unset. `comfyui` and `models`
        follow `home` unless they are set, `hf_endpoint` follows `HF_ENDPOINT`. `comfyui_args` is
        split at white space; `warm_up` may be `off`.

        Raises: `InvalidInput`, naming every variable that does not fit.
        """
        if environment is None:
            environment = os.environ
        given = {
            name.removeprefix("COMFY_RUNNER_").lower(): value
            for name, value in environment.items()
            if name.startswith("COMFY_RUNNER_") and value
        }
        problems: list[Problem] = []

        def path(name: str, default: Path) -> Path:
            if name not in given:
                return default
            try:
                return Path(given[name]).expanduser().absolute()
            except RuntimeError as err:  # ~ of somebody unknown
                what = f"{given[name]!r} cannot be used: {err}"
                problems.append(Problem("bad_setting", what, input=f"COMFY_RUNNER_{name.upper()}"))
                return default

        def number(name: str, default: float, *, zero: bool = False) -> float:
            if name not in given:
                return default
            try:
                value = float(given[name])
            except ValueError:
                value = math.nan
            if math.isfinite(value) and (value > 0 or (zero and value == 0)):
                return value
            what = f"{given[name]!r} is {'neither 0 nor' if zero else 'not'} a number above 0."
            problems.append(Problem("bad_setting", what, input=f"COMFY_RUNNER_{name.upper()}"))
            return default

        device: Device = "auto"
        match given.get("device", "auto"):
            case "auto" | "cpu" | "cuda" as device:
                pass
            case other:
                problems.append(
                    Problem(
                        "bad_setting",
                        f"{other!r} is not auto, cpu or cuda.",
                        input="COMFY_RUNNER_DEVICE",
                    )
                )

        def names(name: str) -> tuple[str, ...]:
            return tuple(part.strip() for part in given.get(name, "").split(",") if part.strip())

        def flag(name: str, default: bool = False) -> bool:
            match given.get(name, "").lower():
                case "":
                    return default
                case "0" | "false" | "no" | "off":
                    return False
                case "1" | "true" | "yes" | "on":
                    return True
                case other:
                    what = f"{other!r} is neither true nor false."
                    place = f"COMFY_RUNNER_{name.upper()}"
                    problems.append(Problem("bad_setting", what, input=place))
                    return False

        def address(name: str, default: str) -> str:
            value = given.get(name, default).rstrip("/")
            if re.fullmatch(r"https?://[^\s/?#@]+[^\s?#@]*", value):
                return value
            what = "It is no http or https address, such as https://huggingface.co."
            place = f"COMFY_RUNNER_{name.upper()}"
            problems.append(Problem("bad_setting", what, input=place))
            return default

        torch = tuple(dict.fromkeys(names("torch")))
        if what := _why_not(torch):
            problems.append(Problem("bad_setting", what, input="COMFY_RUNNER_TORCH"))

        home = path("home", cls.home)
        most_weights = number("max_weights_bytes", 0)
        config = cls(
            home=home,
            comfyui=path("comfyui", home / "ComfyUI"),
            models=path("models", home / "models"),
            manifest=path("manifest", cls.manifest),
            custom_nodes=path("custom_nodes", cls.custom_nodes),
            device=device,
            comfyui_args=tuple(given.get("comfyui_args", "").split()),
            torch=torch,
            lazy_boot=flag("lazy_boot", cls.lazy_boot),
            fork_server=flag("fork_server", cls.fork_server),
            warm_up=None if given.get("warm_up", "off") == "off" else path("warm_up", home),
            preload=names("preload"),
            boot_timeout=number("boot_timeout", cls.boot_timeout),
            run_timeout=number("run_timeout", cls.run_timeout),
            stall_timeout=number("stall_timeout", cls.stall_timeout),
            max_input_bytes=max(1, int(number("max_input_bytes", cls.max_input_bytes))),
            max_weights_bytes=int(most_weights) or None,
            disk_reserve=int(number("disk_reserve", cls.disk_reserve)),
            fetch_timeout=number("fetch_timeout", cls.fetch_timeout),
            recheck_after=number("recheck_after", cls.recheck_after),
            pget=given.get("pget", cls.pget),
            allow_pickles=flag("allow_pickles"),
            private_addresses=flag("private_addresses"),
            allowed_hosts=tuple(given.get("allowed_hosts", "").lower().replace(",", " ").split()),
            max_child_memory=int(number("max_child_memory", 0)) or None,
            max_restarts=max(1, int(number("max_restarts", cls.max_restarts))),
            oom_retry=flag("oom_retry", cls.oom_retry),
            allow_nodes=names("allow_nodes"),
            deny_nodes=names("deny_nodes"),
            only_nodes=names("only_nodes"),
            max_urls=int(number("max_urls", cls.max_urls, zero=True)),
            hub_at_run_time=flag("hub_at_run_time"),
            hf_endpoint=address("hf_endpoint", environment.get("HF_ENDPOINT") or cls.hf_endpoint),
            civitai_endpoint=address("civitai_endpoint", cls.civitai_endpoint),
            replicate_endpoint=address("replicate_endpoint", cls.replicate_endpoint),
        )
        if problems:
            raise InvalidInput(problems)
        return config


def _why_not(torch: Sequence[str]) -> str:
    """Why this cannot be the setting `torch`, in a sentence; empty where it can."""
    unknown = [each for each in torch if each not in TORCH]
    if unknown:
        return f"{', '.join(unknown)} is none of {', '.join(TORCH)}."
    rivals = [each for each in torch if each.startswith("matmul=")]
    if "tf32" in torch and "matmul=highest" in torch:
        rivals = ["tf32", "matmul=highest"]
    return f"{' and '.join(rivals)} contradict each other." if rivals[1:] else ""
