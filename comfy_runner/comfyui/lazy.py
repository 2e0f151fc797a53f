"""Puts off what a booting ComfyUI imports and most workflows never need, until it is needed.

`DEFERRED` is the table of what is put off and why. A module in it is found as usual, and ComfyUI
gets it before it has been run; its first use runs it, in the same object. `from module import name`
gives a `Name`, in whose place the real thing is put wherever it was imported to as soon as the
module has been run. Only imports by who is named in the table are put off: a node pack, or another
package, that imports the same has the module run at once. Before the first pack that is not ours is
loaded, all of ComfyUI's own modules are run, since packs replace functions in them.

What differs from a plain boot: a package that is installed but broken, or lacks a name, is told at
the first use and not at the boot, and with the assets off their routes are not there. Until it is
used, a `Name` does what the real thing would, except where C code wants the very type: `except`
wants a class, torch a number and `getattr` a text. So names that end as exceptions do, or are those
of constants, have their module run at once. What is left are class patterns of `match`, `super`,
and the first argument of `issubclass`. And `is` tells a `Name` from the real thing where it was put
into something else than a module's own names, such as a default value.

Loaded by the launcher by path, in ComfyUI's process: only the standard library is imported here.
Facts about ComfyUI are those of 0.30.0, those about imports those of CPython 3.12.
"""

import copy
import dis
import importlib
import importlib.abc
import importlib.machinery
import operator
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from types import FrameType, ModuleType
from typing import Any

# What no public name has: locks that know of deadlocks, and who asks when something is imported.
_bootstrap: Any = importlib.import_module("importlib._bootstrap")
_HANDLE_FROMLIST = _bootstrap._handle_fromlist.__code__  # noqa: SLF001
_FIND = _bootstrap._find_and_load.__code__, _bootstrap._call_with_frames_removed.__code__  # noqa: SLF001
_ModuleLock, _DeadlockError = _bootstrap._ModuleLockManager, _bootstrap._DeadlockError  # noqa: SLF001
_caller = sys._getframe  # noqa: SLF001

VARIABLE = "COMFY_RUNNER_LAZY_BOOT"
"""Tells ComfyUI's process, with the value 1, that imports are put off."""

STATE = "__comfy_runner_state__"
"""Name in a module that has not been run yet, for its `State`."""

REAL = "__comfy_runner_real__"
"""Name in a module that has put another in its place, for that one."""

IMPORT_NAME, IMPORT_FROM = dis.opmap["IMPORT_NAME"], dis.opmap["IMPORT_FROM"]

OWN = "comfy"
"""The package in which node packs replace functions."""

EXCEPTIONS = ("Error", "Exception", "Warning")
"""How the names of classes end that may stand after `except`."""

GATE = "what comfy_runner has put off"
"""Name of a lock of the import system: of what was put off one thing is run at a time. No module
has it, and unlike any other lock it is known to what looks for deadlocks of imports."""


class IdleSeeder:
    """Stands for app.assets.seeder.asset_seeder while the assets are off, when it does nothing."""

    def __init__(self) -> None:
        self.disabled = False

    def disable(self) -> None:
        """As server.py does without --enable-assets."""
        self.disabled = True

    def is_disabled(self) -> bool:
        """Asked by main.py before it has anything sought."""
        return self.disabled

    def start(self, **_: object) -> bool:
        """Whether a search was started; server.py asks for one with each /object_info."""
        return False

    def pause(self) -> bool:
        """Whether a search was paused."""
        return False

    resume = pause

    def shutdown(self) -> None:
        """Nothing runs."""

    def __getattr__(self, name: str) -> Any:
        """What else the real one has, which is disabled, too."""
        return getattr(sys.modules["app.assets.seeder"].asset_seeder, name)


@dataclass(frozen=True)
class Deferred:
    """One line of the table: modules that are put off, with everything below them."""

    modules: str
    why: str
    """What needs it."""
    by: str = ""
    """The package whose imports of it are put off; empty for ComfyUI itself, without any pack."""
    unless: str = ""
    """An argument of ComfyUI with which it is needed at once."""
    answers: Mapping[str, Any] = field(default_factory=dict)
    """What some of its names are while it is put off, since the boot uses them."""
    then: Mapping[str, Callable[[Any], object]] = field(default_factory=dict)
    """Module to what makes up for the `answers`, once it is run after all."""


DEFERRED = (
    Deferred("torch._dynamo", "torch.compile; it imports sympy", by="comfy_kitchen"),
    Deferred("torchvision", "some models and nodes; it imports torch._dynamo"),
    Deferred("torchaudio", "models and nodes for sound"),
    Deferred("transformers tokenizers", "text encoders, when one is loaded"),
    Deferred("scipy", "the beta scheduler, the lms sampler, nodes for poses, splats and sound"),
    Deferred("torchsde", "the SDE samplers"),
    Deferred("kornia", "nodes for edges, blur and morphology"),
    Deferred("spandrel spandrel_extra_arches", "upscaling models"),
    Deferred("requests", "a front end from the network, which nobody asks for"),
    Deferred("comfy.ldm", "the model that is loaded: one of some sixty architectures"),
    Deferred("comfy.text_encoders", "the text encoder that is loaded: one of some forty"),
    Deferred("comfy.audio_encoders", "the audio encoder that is loaded"),
    Deferred(
        "app.assets app.database",
        "the asset database, which is off; it imports SQLAlchemy and Alembic",
        unless="--enable-assets",
        answers={
            "asset_seeder": IdleSeeder(),
            "register_assets_routes": lambda _: None,
            "dependencies_available": lambda: True,
            "init_db": lambda: None,
        },
        then={
            "app.assets.seeder": lambda module: module.asset_seeder.disable(),
            "app.database.db": lambda module: module.init_db(),
        },
    ),
)


def is_wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether imports are to be put off in this process."""
    return environment.get(VARIABLE) == "1"


def postpone(tree: str, arguments: Sequence[str]) -> None:
    """Put off what the table says from now on; a second call changes only the arguments."""
    sys.meta_path[:] = [each for each in sys.meta_path if not isinstance(each, Postponer)]
    sys.meta_path.insert(0, Postponer(tree, arguments))


def postpone_no_more() -> None:
    """Let all further imports be as usual; what was put off still is."""
    for each in sys.meta_path:
        if isinstance(each, Postponer):
            each.is_over = True
    _note_places()


def run_own() -> None:
    """Run the modules of ComfyUI itself that were put off: packs replace functions in them.

    Else a module that is run later would take what a pack has put into another for ComfyUI's own.
    """
    for name, module in list(sys.modules.items()):
        if type(module) is Unrun and name.partition(".")[0] == OWN:
            run(module)


class Postponer(importlib.abc.MetaPathFinder):
    """Finds the modules of the table; to be put before all other finders, and left there.

    What is imported later from a package that was put off has to find it run.
    """

    def __init__(
        self, tree: str, arguments: Sequence[str] = (), table: Sequence[Deferred] = DEFERRED
    ) -> None:
        """`tree` is ComfyUI's folder, `arguments` are those that it is given."""
        self._tree = tree.rstrip(os.sep) + os.sep
        self._packs = f"{self._tree}custom_nodes{os.sep}"
        self._table = {
            module: entry
            for entry in table
            if entry.unless not in arguments
            for module in entry.modules.split()
        }
        self.is_over = False
        """Whether nothing more is put off."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A spec whose module is put off; None where it is not, and for what is not there."""
        entry = self._entry(fullname)
        if entry is None:
            return None
        if not self.is_over and self.is_put_off(entry, _importer(_caller(1))):
            spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
            if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
                spec.loader = PostponedLoader(spec.loader, self, entry)
                return spec
            if spec is not None and spec.origin is None:  # a folder of modules has nothing to run
                return None
        was_there = fullname in sys.modules
        run_parents(fullname)
        return None if was_there or fullname not in sys.modules else _present(fullname)

    def is_put_off(self, entry: Deferred, frame: FrameType | None) -> bool:
        """Whether code in this frame that imports the entry can wait for it.

        What falls under the same entry cannot: it is run because it is needed.
        """
        if frame is None or frame.f_code.co_name != "<module>":  # in a function it is used at once
            return False
        name = str(frame.f_globals.get("__name__", ""))
        if self._entry(name) is entry:
            return False
        if entry.by:  # a library, which may need what its imports do, once it does more than start
            return not self.is_over and name.partition(".")[0] == entry.by
        file = frame.f_code.co_filename
        return file.startswith(self._tree) and not file.startswith(self._packs)

    def _entry(self, fullname: str) -> Deferred | None:
        """The line of the table that a module falls under."""
        name = fullname
        while name:
            if name in self._table:
                return self._table[name]
            name = name.rpartition(".")[0]
        return None


class PostponedLoader(importlib.abc.Loader):
    """Makes modules that are run at their first use, by the usual loader."""

    def __init__(self, usual: importlib.abc.Loader, postponer: Postponer, entry: Deferred) -> None:
        self.usual = usual
        self.postponer = postponer
        self.entry = entry

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """A module that knows that it has not been run."""
        return Unrun(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Have everything ready for the time when it is run."""
        _own(module)[STATE] = State(self)

    def __getattr__(self, name: str) -> Any:
        """What else there is to ask a loader, such as for the source or for files beside it."""
        return getattr(self.usual, name)


def _present(fullname: str) -> importlib.machinery.ModuleSpec:
    """A spec for a module that a package has imported when it was run just now.

    The import system asked for it before, and would now load it a second time, and put it in the
    place of what the package itself calls so (`_find_spec` and `_find_and_load_unlocked` of
    importlib/_bootstrap.py).
    """
    module = sys.modules.pop(fullname)
    parent, _, child = fullname.rpartition(".")
    package = sys.modules[parent]
    if type(package) is ModuleType and _own(package).get(child) is not module:
        package.__class__ = Named
    return importlib.machinery.ModuleSpec(fullname, PresentLoader(module))


class PresentLoader(importlib.abc.Loader):
    """Gives a module as it is."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.spec = module.__spec__

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:  # noqa: ARG002
        """The one that was there."""
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        """Give it its spec back."""
        module.__spec__ = self.spec


class Named(ModuleType):
    """A package that keeps its names when the import system tells it of a module below it."""

    def __setattr__(self, name: str, value: Any) -> None:
        ModuleType.__setattr__(self, "__class__", ModuleType)
        if name not in _own(self) or not _is_below(self, name, value):
            setattr(self, name, value)


class State:
    """What has to be known to run a module later."""

    def __init__(self, loader: PostponedLoader) -> None:
        self.loader = loader
        self.thread: int | None = None
        """The thread that is running the module, which sees it as any module."""
        self.names: dict[str, Name] = {}
        """What was imported from it meanwhile."""
        self.below: dict[str, ModuleType] = {}
        """Modules below it that were imported meanwhile. It has them only once it has been run, so
        that it imports them itself, and has them run, when it would."""
        self.given: list[tuple[str, dict[str, Any]]] = []
        """Which of them were imported from it, and to where."""

    def can_wait(self, frame: FrameType | None) -> bool:
        """Whether the code in this frame, which imports from the module, can wait for it."""
        return self.loader.postponer.is_put_off(self.loader.entry, frame)


class Unrun(ModuleType):
    """A module that is run when it is used; then it is of the usual type."""

    IMPORT_SYSTEM = frozenset(
        (
            *("__name__", "__spec__", "__loader__", "__path__", "__package__", "__file__"),
            *("__cached__", "__class__"),
            "__warningregistry__",  # unittest empties that of all modules
        )
    )
    """What importing a module, or one below it, reads and sets itself; nothing of it is a use."""

    def __getattribute__(self, name: str) -> Any:
        state = _own(self).get(STATE)
        if state is not None and state.thread != threading.get_ident():
            frame = _caller(1)
            if name not in Unrun.IMPORT_SYSTEM:
                if frame.f_code is _HANDLE_FROMLIST:
                    if name != "__all__" and state.can_wait(_importer(frame)):
                        return None  # it only asks whether there is any; IMPORT_FROM comes next
                elif _is_at(frame, IMPORT_FROM) and state.can_wait(frame):
                    found = _stand_in(self, state, name, frame.f_globals)
                    if found is not None:
                        return found
                run(self)
            elif name == "__spec__":
                # The import system asks this of what has been imported before.
                is_import = frame.f_code in _FIND or _is_at(frame, IMPORT_NAME)
                if is_import and not state.can_wait(_importer(frame)):
                    run(self)
        return ModuleType.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        state = _own(self).get(STATE)
        if (
            state is not None
            and state.thread != threading.get_ident()
            and name not in Unrun.IMPORT_SYSTEM
        ):
            if _is_below(self, name, value):
                state.below[name] = value
                return
            run(self)  # or it would overwrite the value later
        ModuleType.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        run(self)
        ModuleType.__delattr__(self, name)

    def __dir__(self) -> list[str]:
        run(self)
        return dir(self)


class Replaced(ModuleType):
    """A module that has put another in its place, where somebody has got it all the same."""

    def __getattribute__(self, name: str) -> Any:
        return getattr(_own(self)[REAL], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(_own(self)[REAL], name, value)

    def __delattr__(self, name: str) -> None:
        delattr(_own(self)[REAL], name)

    def __dir__(self) -> list[str]:
        return dir(_own(self)[REAL])


def _stand_in(module: ModuleType, state: State, name: str, place: dict[str, Any]) -> Any:
    """What stands for this name of the module until it is run; None where nothing can."""
    if name in state.below:
        state.given.append((name, place))
        return state.below[name]
    if name in state.loader.entry.answers:
        return state.loader.entry.answers[name]
    if name.isupper() or name.endswith(EXCEPTIONS):
        return None
    if name not in state.names:
        state.names[name] = Name(module, name)
    object.__getattribute__(state.names[name], "_places").append(place)
    return state.names[name]


def _note_places() -> None:
    """Know also those places that names were imported to from where they were imported to."""
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType):
            own = _own(module)
            for value in list(own.values()):
                if type(value) is Name:
                    object.__getattribute__(value, "_places").append(own)


def run(module: ModuleType) -> None:
    """Run a module that was put off, after the packages that it is in; nothing for any other.

    It is not run yet afterwards where another thread runs it that waits for this one, which goes on
    with what there is, as the import system has it.

    Raises: whatever its import raises; the next use then tries again.
    """
    own = _own(module)
    state = own.get(STATE)
    if state is None or state.thread == threading.get_ident():
        return
    name = own["__name__"]
    with ExitStack() as held:
        with suppress(_DeadlockError):
            held.enter_context(_ModuleLock(GATE))
        run_parents(name)
        try:
            held.enter_context(_ModuleLock(name))
        except _DeadlockError:
            return
        if STATE in own:  # neither another thread has run it meanwhile, nor its package
            state.thread = threading.get_ident()
            held.callback(setattr, state, "thread", None)
            _run(module, state)


def _run(module: ModuleType, state: State) -> None:
    own = _own(module)
    name, usual = own["__name__"], state.loader.usual
    own["__spec__"].loader = own["__loader__"] = usual
    # A node runs in torch's inference mode, in which what a module makes could not be learned with.
    inference_mode = getattr(sys.modules.get("torch"), "inference_mode", None)
    with inference_mode(False) if inference_mode else nullcontext():
        usual.exec_module(module)
    own["__spec__"].loader_state = state.names  # they stay, for whoever has a weak reference
    del own[STATE]
    module.__class__ = ModuleType
    real = sys.modules.get(name, module)
    if real is not module:  # it has put another in its place, as transformers does
        own[REAL] = real
        module.__class__ = Replaced
        for other in list(sys.modules.values()):
            if isinstance(other, ModuleType):
                _replace(_own(other), module, real)
    if name in state.loader.entry.then:
        state.loader.entry.then[name](real)
    parent, _, child = name.rpartition(".")
    package = sys.modules.get(parent)
    if type(package) is Unrun:  # it is being run, and imports this one
        _own(package)[child] = real
    for key, below in list(state.below.items()):
        if type(below) is Unrun or key not in vars(real):
            setattr(real, key, below)
    for key, place in state.given:  # a function may be called as the module that it is in
        _replace(place, state.below[key], vars(real)[key])
    for key, value in list(state.names.items()):
        if key in vars(real):  # else it is got in another way, and has a first use of its own
            settle(value)


def _replace(place: dict[str, Any], old: object, new: object) -> None:
    """Put one thing in another's place among these names."""
    for key, there in list(place.items()):
        if there is old:
            place[key] = new


def run_parents(fullname: str) -> None:
    """Run the packages that a module is in, where they were put off, the outermost first."""
    parent = fullname.rpartition(".")[0]
    if parent:
        run_parents(parent)
        module = sys.modules.get(parent)
        if type(module) is Unrun:
            run(module)


class Name:
    """What `from module import name` gives before the module is run; any use of it runs it."""

    __slots__ = ("__weakref__", "_module", "_name", "_places", "_value")

    def __init__(self, module: ModuleType, name: str) -> None:
        object.__setattr__(self, "_module", module)
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_places", [])

    def __getattribute__(self, name: str) -> Any:
        # The first is asked of what is no class, when one is derived from it; the others are asked
        # of the thing itself where a class may have them for its instances.
        if name in ("__mro_entries__", "__reduce_ex__", "__copy__", "__deepcopy__"):
            return object.__getattribute__(self, name)
        return getattr(settle(self), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(settle(self), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(settle(self), name)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        real = settle(self)
        if isinstance(real, type):
            return (real,)
        entries: tuple[Any, ...] = real.__mro_entries__(
            tuple(real if each is self else each for each in bases)
        )
        return entries

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, settle(self))

    def __subclasscheck__(self, subclass: type) -> bool:
        return issubclass(subclass, settle(self))

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        real = settle(self)
        get = getattr(type(real), "__get__", None)
        return real if get is None else get(real, instance, owner)

    def __reduce_ex__(self, _: object) -> tuple[Any, ...]:
        return operator.getitem, ((settle(self),), 0)  # pickles the real thing


BINARY = "add sub mul matmul truediv floordiv mod lshift rshift and or xor pow"

USES: Mapping[str, Callable[..., Any]] = {
    "__call__": lambda real, *arguments, **keywords: real(*arguments, **keywords),
    "__enter__": lambda real: real.__enter__(),
    "__exit__": lambda real, *error: real.__exit__(*error),
    "__copy__": copy.copy,
    "__deepcopy__": copy.deepcopy,
    **{
        f"__{use.__name__}__": use
        for use in (
            *(repr, str, format, bytes, hash, dir, len, iter, next, reversed),
            *(bool, int, float, complex, round, divmod, operator.index, os.fspath),
        )
    },
    **{
        f"__{use}__": getattr(operator, f"__{use}__")
        for use in (
            *("getitem", "setitem", "delitem", "contains", "eq", "ne", "lt", "le", "gt", "ge"),
            *("neg", "pos", "abs", "invert"),
            *BINARY.split(),
            *(f"i{use}" for use in BINARY.split()),
        )
    },
}
"""What Python looks for in a type and not with `getattr`, as a function of the real thing."""


def _forwarded(use: Callable[..., Any]) -> Callable[..., Any]:
    return lambda name, *arguments, **keywords: use(settle(name), *arguments, **keywords)


def _reflected(use: Callable[..., Any]) -> Callable[..., Any]:
    return lambda name, other: use(other, settle(name))


for special, function in USES.items():
    setattr(Name, special, _forwarded(function))
for special in BINARY.split():
    setattr(Name, f"__r{special}__", _reflected(USES[f"__{special}__"]))


def settle(name: Name) -> Any:
    """The real thing, which takes the name's place wherever it was imported to."""
    get = object.__getattribute__
    try:
        return get(name, "_value")
    except AttributeError:
        pass
    module, wanted = get(name, "_module"), get(name, "_name")
    run(module)
    path = _own(module)["__name__"]
    try:
        value = getattr(sys.modules[path], wanted)
    except AttributeError:
        below = f"{path}.{wanted}"
        try:
            value = importlib.import_module(below)
        except ModuleNotFoundError as err:
            if err.name != below:  # it is there, and lacks something itself
                raise
            raise ImportError(f"cannot import name {wanted!r} from {path!r}", name=path) from err
    object.__setattr__(name, "_value", value)
    for place in get(name, "_places"):
        _replace(place, name, value)
    return value


def _own(module: ModuleType) -> dict[str, Any]:
    """The module's names, without its being used."""
    own: dict[str, Any] = ModuleType.__getattribute__(module, "__dict__")
    return own


def _is_below(module: ModuleType, name: str, value: Any) -> bool:
    """Whether the value is the module of this name below the module."""
    return isinstance(value, ModuleType) and value is sys.modules.get(
        f"{_own(module)['__name__']}.{name}"
    )


def _is_at(frame: FrameType, operation: int) -> bool:
    """Whether the code is at this operation now."""
    return frame.f_code.co_code[frame.f_lasti] == operation


def _importer(frame: FrameType | None) -> FrameType | None:
    """The frame of the code that imports, seen from within the import system."""
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name.partition(".")[0] != "importlib" and frame.f_code.co_filename != __file__:
            return frame
        frame = frame.f_back
    return None
