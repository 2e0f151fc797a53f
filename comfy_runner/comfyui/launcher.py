"""Runs ComfyUI's own `main.py` in this process, with two routes for the runner and a lock on all.

Run as `python -P launcher.py TREE DIGEST ARGUMENT...` in the folder TREE, in place of
`python main.py ARGUMENT...`; `-P`, so that no module beside this one shadows another. DIGEST is
that of the token which every request must carry, see `inside.lock`. The tree is used as it is. No
module of ComfyUI, and not torch, is imported before `main.py` does it, because `main.py` first
sets variables that torch reads; what this module needs of them it takes from `sys.modules` later.
Facts about ComfyUI are those of 0.30.0.

GET /comfy_runner/health    {"worker_alive": bool, "guard": process id of our parent, "pid": ours}
GET /comfy_runner/catalog   see `catalog`
"""

import functools
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import json
import logging
import os
import re
import runpy
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

log = logging.getLogger("comfy_runner")


def main(tree: str, digest: str, arguments: Sequence[str]) -> None:
    """Run ComfyUI with the given arguments until it ends."""
    # Nothing is garbage while modules are loaded, and looking for it takes a tenth of the boot.
    gc.disable()
    inside, speed, lazy = beside("inside"), beside("speed"), beside("lazy")
    inside.tell_phase("interpreter")
    inside.explain_on_request()
    inside.end_with_worker()
    if lazy.is_wanted():
        lazy.postpone(tree, arguments)
    packs = inside.PackTeller(before=lazy.run_own)
    packs.start()
    meter = None
    if written := os.environ.get(inside.IMPORT_TIMES):
        meter = beside("import_times").Meter(written, tree, packs, lazy.DEFERRED)
        meter.start()

    def when_loaded(server: ModuleType, app: Any) -> None:
        packs.stop()
        inside.tell_phase("nodes")
        if meter is not None:
            meter.stop()
        lazy.postpone_no_more()
        settings = os.environ.get(speed.VARIABLE, "").split(",")
        if any(settings):
            speed.tune(sys.modules["torch"], settings)
            log.info("torch computes with %s", ", ".join(settings))
        inside.lock(server, app, digest)
        # What is there now stays. ComfyUI looks for garbage after its first prompt, and would hold
        # the interpreter for 0.4 s while the prompt's last messages are to be sent.
        gc.freeze()
        gc.enable()

    hooks: dict[str, Callable[[ModuleType], None]] = {
        "comfy_execution.progress": inside.keep_states,
        "torch": lambda _: inside.tell_phase("torch"),
        "server": functools.partial(
            extend_server,
            when_loaded=when_loaded,
            when_ready=functools.partial(inside.tell_phase, inside.READY),
        ),
        # The last one that main.py imports before it starts.
        "hook_breaker_ac10a0": lambda _: inside.tell_phase("ComfyUI"),
        "app.frontend_management": spare_browser_packages,
    }
    main_program = str(Path(tree) / "main.py")
    sys.path.insert(0, tree)
    sys.meta_path.insert(0, AfterImport(hooks))
    sys.argv = [main_program, *arguments]
    runpy.run_path(main_program, run_name="__main__")


class AfterImport(importlib.abc.MetaPathFinder):
    """Finds modules as usual and calls a function with each named one after it was loaded."""

    def __init__(self, hooks: Mapping[str, Callable[[ModuleType], None]]) -> None:
        self.hooks = hooks

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The usual spec with a loader that calls the hook; None for a module without one."""
        if fullname not in self.hooks:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = HookedLoader(spec.loader, self.hooks[fullname])
        return spec


class HookedLoader(importlib.abc.Loader):
    """Loads a module as `loader` does, then calls `hook` with it."""

    def __init__(self, loader: importlib.abc.Loader, hook: Callable[[ModuleType], None]) -> None:
        self.loader = loader
        self.hook = hook

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """What the real loader makes."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module under its real loader, so that it looks as if we were not here."""
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.hook(module)


def beside(name: str) -> Any:
    """A module of this folder, always the same, under a name that nobody else has."""
    full_name = f"comfy_runner_{name}"
    if full_name not in sys.modules:
        path = Path(__file__).with_name(f"{name}.py")
        spec = importlib.util.spec_from_file_location(full_name, path)
        assert spec is not None and spec.loader is not None  # noqa: PT018, S101 (it ends with .py)
        sys.modules[full_name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full_name])
    return sys.modules[full_name]


def extend_server(
    server: ModuleType,
    when_loaded: Callable[[ModuleType, Any], None],
    when_ready: Callable[[], None],
) -> None:
    """Make ComfyUI's server module add our routes to its own.

    `when_loaded` is called with the module and the application before any route is added,
    `when_ready` as soon as the server listens.
    """
    probe = Probe(sys.modules["folder_paths"])
    add_routes = server.PromptServer.add_routes
    listen = server.PromptServer.start_multi_address
    web = server.web

    def add_all_routes(self: Any) -> None:
        # main.py comes here when every node is loaded, but before it opens the port and starts
        # the worker.
        when_loaded(server, self.app)

        @functools.cache
        def known() -> bytes:
            return json.dumps(catalog(probe)).encode()

        async def health(_: Any) -> Any:
            told = {"worker_alive": worker_alive(), "guard": os.getppid(), "pid": os.getpid()}
            return web.json_response(told)

        async def nodes_and_models(_: Any) -> Any:
            return web.Response(body=known(), content_type="application/json")

        self.routes.get("/comfy_runner/health")(health)
        self.routes.get("/comfy_runner/catalog")(nodes_and_models)
        add_routes(self)

    async def listen_and_tell(self: Any, *arguments: Any, **keywords: Any) -> None:
        await listen(self, *arguments, **keywords)
        when_ready()

    server.PromptServer.add_routes = add_all_routes
    server.PromptServer.start_multi_address = listen_and_tell


def spare_browser_packages(management: ModuleType) -> None:
    """Keep ComfyUI from reporting the editor's example workflows as missing: nobody opens it."""
    if importlib.util.find_spec("comfyui_workflow_templates") is None:
        management.FrontendManager.legacy_templates_path = classmethod(lambda _: None)


def worker_alive() -> bool:
    """Whether the thread that runs prompts is there: some prompts kill it and leave the port."""
    return any("prompt_worker" in thread.name for thread in threading.enumerate())


def catalog(probe: "Probe") -> dict[str, Any]:
    """What /object_info does not tell about the nodes; `client.ComfyClient.catalog` passes it on.

    version         1
    comfyui_version such as "0.30.0"
    model_inputs    [{class_type, input, folder, extras}]: inputs whose choices are the files of a
                    model folder; `extras` are choices that are no files, such as "pixel_space"
    file_inputs     [{class_type, input, subfolder}]: inputs whose choices are the files of the
                    input folder (subfolder "") or of a folder in it ("3d")
    unchecked       {class_type: [input]}: inputs whose limits and choices ComfyUI leaves to the
                    class; "*" stands for all, "@types" for the types of links
    folders         {folder: {places, extensions}}: the folders below the models folder that a
                    model folder lists, in ComfyUI's order, and which endings (none: all)

    Inputs within dynamic ones have dotted names, as in a prompt: "mode.model_name".
    """
    folder_paths = sys.modules["folder_paths"]
    model_inputs: list[dict[str, Any]] = []
    file_inputs: list[dict[str, Any]] = []
    not_checked: dict[str, list[str]] = {}
    with probe.probing():
        for class_type, node_class in sys.modules["nodes"].NODE_CLASS_MAPPINGS.items():
            try:
                choices = dict(combos(node_class.INPUT_TYPES()))
                names = unchecked(node_class)
            except Exception:  # anybody's code: one broken class must not hide the others
                log.warning("node class %s does not tell its inputs", class_type, exc_info=True)
                continue
            if names:
                not_checked[class_type] = names
            for name, options in choices.items():
                folders, subfolders, extras = probe.recognise(options)
                place = {"class_type": class_type, "input": name}
                model_inputs += [{**place, "folder": found, "extras": extras} for found in folders]
                file_inputs += [
                    {**place, "subfolder": found, "extras": extras} for found in subfolders
                ]
    return {
        "version": 1,
        "comfyui_version": sys.modules["comfyui_version"].__version__,
        "model_inputs": model_inputs,
        "file_inputs": file_inputs,
        "unchecked": not_checked,
        "folders": {
            folder: {
                "places": list(places_below(folder_paths.models_dir, paths)),
                "extensions": sorted(extensions),
            }
            for folder, (paths, extensions) in folder_paths.folder_names_and_paths.items()
        },
    }


def places_below(models: str, paths: Sequence[str]) -> Iterator[str]:
    """Of these folders those below the models folder, relative to it, with `/`."""
    root = Path(models).absolute()
    for path in paths:
        if Path(path).absolute().is_relative_to(root):
            yield Path(path).absolute().relative_to(root).as_posix()


def unchecked(node_class: Any) -> list[str]:
    """The inputs that `validate_inputs` of ComfyUI's execution.py does not check for the class."""
    internal = sys.modules["comfy_api.internal"]
    v3 = internal._ComfyNodeInternal  # noqa: SLF001 (what execution.py itself asks)
    if isinstance(node_class, type) and issubclass(node_class, v3):
        validate = internal.first_real_override(node_class, "validate_inputs")
    else:
        validate = getattr(node_class, "VALIDATE_INPUTS", None)
    if validate is None:
        return []
    arguments = inspect.getfullargspec(validate)
    names = arguments.args[1:] if inspect.ismethod(validate) else arguments.args
    found = ["*"] if arguments.varkw else [name for name in names if name != "input_types"]
    return [*found, "@types"] if "input_types" in names else found


def combos(inputs: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Name and choices of every input with a list of choices, those in dynamic inputs included."""
    for group in ("required", "optional"):
        for name, declared in (inputs.get(group) or {}).items():
            full_name = prefix + name
            match declared:
                case [list() | tuple() as options, *_]:
                    yield full_name, list(options)
                case ["COMBO", {"options": list() | tuple() as options}, *_]:
                    yield full_name, list(options)
                case ["COMFY_DYNAMICCOMBO_V3", {"options": options}, *_]:
                    for option in options:
                        yield from combos(option["inputs"], f"{full_name}.")
                case ["COMFY_DYNAMICSLOT_V3", {"inputs": inner}, *_]:
                    yield from combos(inner, f"{full_name}.")
                case ["COMFY_AUTOGROW_V3", {"template": template}, *_]:
                    for _, options in combos(template["input"]):
                        for slot in autogrow_names(template):
                            yield f"{full_name}.{slot}", options


def autogrow_names(template: Mapping[str, Any]) -> list[str]:
    """The names that an input which grows on demand can take."""
    if "names" in template:
        return list(template["names"])
    return [f"{template['prefix']}{number}" for number in range(template["max"])]


class Probe:
    """Tells which choices are file listings: for one thread, each folder holds marked files only.

    `folder_paths` keeps its functions for all other threads. The marked files are real ones, in a
    temporary folder, because some nodes look at the folder themselves.
    """

    INPUT = "input files"  # with a space: no model folder is called so
    INPUT_KINDS = (
        *("png", "jpg", "webp", "gif", "svg", "mp4", "webm", "mov", "mp3", "wav", "flac", "ogg"),
        *("glb", "gltf", "obj", "fbx", "stl", "ply", "spz", "splat", "ksplat", "usdz"),
        *("latent", "safetensors", "txt", "json", "csv", "srt", "yaml", "pdf", "zip"),
    )
    INPUT_SUBFOLDERS = ("", "3d")
    MARK = re.compile(r"(?:(?P<subfolder>.+)/)?@@(?P<folder>[^@]+)@@(?:\.\w+)?")

    def __init__(self, folder_paths: ModuleType) -> None:
        self.folder_paths = folder_paths
        self.thread: int | None = None
        self.root = Path()
        # Replaced once and for all: packs may import the functions by name.
        replacements: dict[str, Callable[..., Any]] = {
            "get_filename_list": self.marked_files,
            "get_folder_paths": self.marked_paths,
            "get_input_directory": lambda: str(self.root / "input"),
        }
        for name, marked in replacements.items():
            setattr(folder_paths, name, self.switch(getattr(folder_paths, name), marked))

    def switch(self, usual: Callable[..., Any], marked: Callable[..., Any]) -> Callable[..., Any]:
        """`usual` for every thread but the probing one."""

        def choose(*arguments: Any, **keywords: Any) -> Any:
            chosen = marked if self.thread == threading.get_ident() else usual
            return chosen(*arguments, **keywords)

        return choose

    @contextmanager
    def probing(self) -> Iterator[None]:
        """Within, this thread sees the marked files."""
        with tempfile.TemporaryDirectory(prefix="comfy-runner-probe-") as root:
            self.root = Path(root)
            for subfolder in self.INPUT_SUBFOLDERS:
                folder = self.root / "input" / subfolder
                folder.mkdir(parents=True, exist_ok=True)
                for kind in self.INPUT_KINDS:
                    (folder / f"@@{self.INPUT}@@.{kind}").touch()
            self.thread = threading.get_ident()
            try:
                yield
            finally:
                self.thread = None

    def marked_files(self, folder_name: str) -> list[str]:
        """`folder_paths.get_filename_list` while probing."""
        folder = self.folder_paths.map_legacy(folder_name)
        extensions = self.folder_paths.folder_names_and_paths[folder][1]
        usual = ".safetensors"
        if extensions and usual not in extensions:
            usual = next((name for name in sorted(extensions) if name.startswith(".")), "")
        return [f"@@{folder}@@{usual}"]

    def marked_paths(self, folder_name: str) -> list[str]:
        """`folder_paths.get_folder_paths` while probing."""
        folder = self.folder_paths.map_legacy(folder_name)
        paths, extensions = self.folder_paths.folder_names_and_paths[folder]
        if folder == "custom_nodes":  # packs read their own files through it
            return list(paths)
        marked = self.root / "models" / folder
        (name,) = self.marked_files(folder)
        if "folder" in extensions:  # diffusers: a model is a folder
            (marked / name).mkdir(parents=True, exist_ok=True)
            (marked / name / "model_index.json").touch()
        else:
            marked.mkdir(parents=True, exist_ok=True)
            (marked / name).touch()
        return [str(marked)]

    def recognise(self, options: Sequence[Any]) -> tuple[list[str], list[str], list[Any]]:
        """Model folders, subfolders of the input folder, and the choices that are no listing."""
        folders: dict[str, None] = {}
        subfolders: dict[str, None] = {}
        extras = []
        for option in options:
            mark = self.MARK.fullmatch(option) if isinstance(option, str) else None
            if mark is None:
                if isinstance(option, str | int | float):
                    extras.append(option)
            elif mark["folder"] == self.INPUT:
                subfolders[mark["subfolder"] or ""] = None
            else:
                folders[mark["folder"]] = None
        return list(folders), list(subfolders), extras


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
