"""Imports that are put off, in small packages: whoever uses them is to see no difference."""

import importlib
import inspect
import math
import os
import pickle
import sys
import threading
import unittest
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from comfy_runner.comfyui import lazy
from comfy_runner.comfyui.lazy import Deferred, Name, Postponer, Unrun

LATE = {
    "late/__init__.py": """
        from late.inner import canny
        number, text, items, table = 7, "seven", [1, 2, 3], {"key": "value"}
        alias = list[int]
        def double(value): return 2 * value
        class Meta(type):
            def __call__(cls, *given):
                made = super().__call__(*given)
                made.meta = True
                return made
        class Base:
            made = 0
            def __init__(self, value=1): self.value = value
            def __eq__(self, other): return type(self) is type(other) and self.value == other.value
            def __hash__(self): return hash(self.value)
            def __deepcopy__(self, memo): return type(self)(self.value)
        class Other:
            def greet(self): return "hello"
        class LateError(Exception): pass
        class Lock:
            def __enter__(self): return "held"
            def __exit__(self, *_): return True
        lock = Lock()
        __all__ = ["double", "number"]
    """,
    "late/inner.py": """
        def canny(value): return f"edges of {value}"
        def plain(value): return f"plain {value}"
    """,
    "late/deep/__init__.py": "",
    "late/deep/er.py": """
        from . import __name__ as package
        from ..inner import plain
        def deepest(): return package, plain(1)
    """,
}


class Ground:
    """Packages in a folder, and a ComfyUI's folder whose modules import them."""

    def __init__(self, folder: Path) -> None:
        self.tree, self.site = folder / "tree", folder / "site"
        self.log = ModuleType("ground_log")
        self.ran: list[str] = []
        """Names of the modules of the packages that have been run, oldest first."""
        self.log.ran = self.ran  # type: ignore[attr-defined]
        self.count = 0
        self.lay(LATE)

    def lay(self, files: dict[str, str], where: Path | None = None) -> None:
        """Write modules, each of which tells when it is run."""
        for name, text in files.items():
            path = (where or self.site) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            tell = "import ground_log\nground_log.ran.append(__name__)\n"
            path.write_text(tell + dedent(text))
        importlib.invalidate_caches()

    def postpone(self, *modules: str, by: str = "", arguments: Sequence[str] = ()) -> Postponer:
        """Have these modules put off."""
        entry = Deferred(" ".join(modules or ("late",)), "tests", by=by)
        postponer = Postponer(str(self.tree), arguments, [entry])
        sys.meta_path.insert(0, postponer)
        return postponer

    def load(self, source: str, where: Path | None = None) -> Any:
        """A new module of the tree, or of another folder."""
        folder = self.tree if where is None else where
        folder.mkdir(parents=True, exist_ok=True)
        self.count += 1
        name = f"user_{self.count}"
        (folder / f"{name}.py").write_text(dedent(source))
        importlib.invalidate_caches()
        sys.path.insert(0, str(folder))
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(str(folder))

    def answer(self, imports: str, expression: str) -> tuple[list[str], Any]:
        """What was run by the imports alone, and what the expression gives later."""
        user = self.load(f"{imports}\ndef answer():\n    return {expression}\n")
        ran = list(self.ran)
        return ran, user.answer()

    def forget(self) -> None:
        """As if nothing had been imported."""
        self.ran.clear()
        roots = (str(self.tree), str(self.site))
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", "")).startswith(roots):
                del sys.modules[name]


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # some modules change within a second
    monkeypatch.syspath_prepend(tmp_path / "site")
    ground = Ground(tmp_path)
    monkeypatch.setitem(sys.modules, "ground_log", ground.log)
    before = dict(sys.modules)
    yield ground
    for name in set(sys.modules) - set(before):
        del sys.modules[name]


FORMS = [
    ("import late", "late.double(4)"),
    ("import late.inner", "late.inner.canny(1), late.canny(1)"),
    ("import late.inner as i", "i.canny(1)"),
    ("import late as l", "l.number"),
    ("import late.deep.er", "late.deep.er.deepest()"),
    ("import late.deep.er as e", "e.deepest()"),
    ("import late.deep, late.inner", "late.deep.__name__, late.inner.plain(2)"),
    ("from late import double", "double(4)"),
    ("from late import double as twice, number as n", "twice(n)"),
    ("from late import inner", "inner.canny(1)"),
    ("from late import deep", "deep.__name__"),
    ("from late.deep import er", "er.deepest()"),
    ("from late.deep.er import deepest", "deepest()"),
    ("from late.inner import canny", "canny(1)"),
    ("import importlib\nlate = importlib.import_module('late')", "late.double(4)"),
    ("import importlib\ner = importlib.import_module('.er', 'late.deep')", "er.deepest()"),
    ("late = __import__('late.inner')", "late.inner.canny(1)"),
    ("import sys, late", "sys.modules['late'].double(4)"),
    ("\n".join(f"name_{n} = {n}" for n in range(300)) + "\nfrom late import double", "double(1)"),
]


@pytest.mark.parametrize(("imports", "expression"), FORMS)
def test_every_form_of_import_waits_and_gives_the_same(
    ground: Ground, imports: str, expression: str
) -> None:
    ran_plainly, plain = ground.answer(imports, expression)
    ground.forget()
    ground.postpone()
    ran, later = ground.answer(imports, expression)
    assert "late" in ran_plainly
    assert ran == []
    assert later == plain
    assert ground.ran.count("late") == 1
    assert len(ground.ran) == len(set(ground.ran))


USES = [
    *("double(3)", "double.__name__", "Base().value", "Base.__mro__[1]", "repr(number)"),
    *("isinstance(Base(), Base)", "isinstance(1, Base)", "isinstance(Base(), (str, Base))"),
    *("isinstance(Base(), Base | None)", "isinstance(None, Base | None)", "issubclass(int, Base)"),
    *("issubclass(type(Base()), (Base, str))", "type(Base()).__name__", "Base == Base"),
    *("type('Made', (Base,), {}) if 0 else Base.__name__", "{Base: 1}[Base]", "len({Base, Base})"),
    *("hash(number) == hash(7)", "number == 7", "7 == number", "number != 8", "number in [7]"),
    *("number + 1", "1 + number", "number - 1", "10 - number", "number * 2", "number / 2"),
    *("2 ** number", "number ** 2", "15 // number", "number % 4", "-number", "abs(number)"),
    *("divmod(number, 4)", "round(number)", "int(number)", "float(number)", "number < 8"),
    *("number >= 7", "8 > number", "number & 3", "8 | number", "~number", "1 << number"),
    *("[0] * number", "list(range(number))", "'abcdefgh'[number]", "bool(number)", "hex(number)"),
    *("str(text)", "f'{text:>9}'", "f'{text!r}'", "'%s' % text", "'a ' + text", "text + ' b'"),
    *("text.upper()", "'eve' in text", "''.join(text)", "text[0]", "format(number, '03d')"),
    *(
        "items + [4]",
        "[0] + items",
        "[*items]",
        "len(items)",
        "2 in items",
        "list(reversed(items))",
    ),
    *(
        "sum(items)",
        "[x for x in items]",
        "items[1:]",
        "max(items)",
        "sorted(items)",
        "items == [1, 2, 3]",
    ),
    *(
        "{**table}",
        "dict(table)",
        "'key' in table",
        "table['key']",
        "sorted(table)",
        "table | {1: 2}",
    ),
    *("table.setdefault('new', 1)", "dir(Base) == dir(type(Base()))", "vars(Base)['made']"),
    *("alias.__origin__", "alias.__args__", "items.__class__"),
    *("list(map(double, items))", "functools.partial(double, 4)()", "functools.reduce(max, items)"),
    "inspect.isclass(Base), inspect.isfunction(double), inspect.isclass(double)",
    "str(inspect.signature(double)), str(inspect.signature(Base))",
    "inspect.getsource(double)",
    "operator.index(number), operator.length_hint(items)",
    "pickle.loads(pickle.dumps(Base)).__name__, pickle.loads(pickle.dumps(Base(4))).value",
    "pickle.loads(pickle.dumps(double))(2), pickle.loads(pickle.dumps([items, number]))",
    "pickle.dumps(Base(1))",
    "copy.copy(items), copy.copy(Base).__name__, copy.deepcopy({'class': Base})['class'].__name__",
    "copy.deepcopy(items), copy.deepcopy(Base) == Base, copy.deepcopy(double)(1)",
    "weakref.ref(Base)().__name__, weakref.WeakKeyDictionary({double: 1})[double]",
    "typing.get_origin(alias), typing.Optional[Base].__args__[0] == Base",
    "lock.__enter__()",
    "isinstance(Base, type), isinstance(double, type), Base.__class__, double.__class__",
]
NAMES = "Base, double, number, text, items, table, alias, lock"
TOOLS = "import copy, functools, inspect, operator, pickle, sys, typing, weakref"


@pytest.mark.parametrize("expression", USES)
def test_the_first_use_is_as_any(ground: Ground, expression: str) -> None:
    imports = f"{TOOLS}\nfrom late import {NAMES}"
    _, plain = ground.answer(imports, expression)
    ground.forget()
    ground.postpone()
    ran, later = ground.answer(imports, expression)
    assert ran == []
    assert "late" in ground.ran
    assert (type(later), repr(later)) == (type(plain), repr(plain))


KEPT = [
    "def answer(value=number): return value + 1",
    "def answer(make=Base): return make(5).value",
    "class Holder:\n    made = Base\n"
    "def answer(): return Holder.made(2).value, Holder().made(3) == Base(3)",
    "class Holder:\n    twice = double\ndef answer():\n    try:\n        return Holder().twice()\n"
    "    except TypeError as err:\n        return type(err)",
    "TABLE_OF = {'base': Base, 'double': double}\n"
    "def answer(): return TABLE_OF['base'](1).value, TABLE_OF['double'](2)",
    "KINDS = (str, Base)\ndef answer(): return isinstance(Base(), KINDS), isinstance(1, KINDS)",
    "def typed(value: Base) -> number: pass\n"
    "def answer(): return typing.get_type_hints(typed)['value'] == Base",
    "def typed(value: 'Base') -> 'list[Base]': pass\n"
    "def answer(): return [str(hint) for hint in typing.get_type_hints(typed).values()]",
    "waiting = functools.partial(double, 6)\ndef answer(): return waiting()",
    "waiting = [number, number]\ndef answer(): return waiting == [7, 7], waiting.index(7)",
    "def answer():\n    with lock as told:\n        raise ValueError\n    return told",
    "def answer():\n    with lock as told:\n        return told",
    "import late as l\ndef answer():\n    global items\n    items += [4]\n"
    "    return items is l.items",
]


@pytest.mark.parametrize("body", KEPT)
def test_what_is_put_somewhere_else_works_as_well(ground: Ground, body: str) -> None:
    source = f"{TOOLS}\nfrom late import {NAMES}\n{body}\n"
    plain = ground.load(source).answer()
    ground.forget()
    ground.postpone()
    user = ground.load(source)
    assert ground.ran == []
    assert repr(user.answer()) == repr(plain)


CLASSES = [
    (
        "import dataclasses\n@dataclasses.dataclass\nclass Data:\n    base: Base\n"
        "    made: Base = dataclasses.field(default_factory=Base)",
        "Data(Base(3)).made.value, [field.name for field in dataclasses.fields(Data)]",
    ),
    ("class Derived(Base): pass", "Derived().value"),
    ("class Derived(Base, Other): pass", "Derived().greet(), Derived().value"),
    ("class Own: pass\nclass Derived(Own, Other, Base): pass", "Derived().greet()"),
    ("class Derived(metaclass=Meta): pass", "Derived().meta, type(Derived).__name__"),
    ("class Derived(Base, metaclass=Meta): pass", "Derived(4).value, Derived().meta"),
    ("class Derived(alias): pass", "[base.__name__ for base in Derived.__mro__]"),
    ("class Own: pass\nclass Derived(Own, alias): pass", "len(Derived.__mro__)"),
    (
        "class Derived(Base):\n    def __init__(self): super().__init__(9)",
        "Derived().value, isinstance(Derived(), Base), issubclass(Derived, Base)",
    ),
    ("import pickle\nclass Derived(Base): pass", "pickle.loads(pickle.dumps(Derived(8))).value"),
]


@pytest.mark.parametrize(("derived", "expression"), CLASSES)
def test_a_class_can_be_derived_from_it(ground: Ground, derived: str, expression: str) -> None:
    imports = f"from late import Base, Other, Meta, alias\n{derived}"
    _, plain = ground.answer(imports, expression)
    ground.forget()
    ground.postpone()
    ran, later = ground.answer(imports, expression)
    assert "late" in ran
    assert later == plain


def test_an_exception_can_be_caught_before_anything_else_is_used(ground: Ground) -> None:
    ground.postpone()
    user = ground.load(
        """
        from late import LateError, double
        def answer():
            try:
                raise LookupError
            except LateError:
                return "the wrong one"
            except LookupError:
                return "the right one"
        """
    )
    assert user.answer() == "the right one"


def test_a_constant_is_one_from_the_start(ground: Ground) -> None:
    """What is written in C does not take it for a number or a text otherwise."""
    ground.lay({"constants.py": "SCALE, WORD_2 = 0.5, 'real'\n"})
    ground.postpone("constants")
    user = ground.load(
        """
        import math
        from constants import SCALE, WORD_2
        def answer():
            return math.sin(SCALE), getattr(3, WORD_2), "reality".startswith(WORD_2)
        """
    )
    assert user.answer() == (math.sin(0.5), 3, True)


def test_an_exception_of_a_module_is_caught(ground: Ground) -> None:
    ground.postpone()
    user = ground.load(
        """
        import late
        def answer():
            try:
                raise LookupError
            except (late.LateError, LookupError) as err:
                return type(err)
        """
    )
    assert ground.ran == []
    assert user.answer() is LookupError


def test_a_star_takes_what_the_package_offers(ground: Ground) -> None:
    ground.postpone()
    user = ground.load("from late import *\n")
    assert user.double(user.number) == 14
    assert not hasattr(user, "Base")
    assert ground.load("from late.inner import *\n").plain(1) == "plain 1"


def test_the_real_thing_takes_its_place_everywhere(ground: Ground) -> None:
    ground.postpone()
    first = ground.load("from late import Base, double, inner as i\n")
    second = ground.load("from late import Base as B, number\nclass Mine:\n    kind = B\n")
    third = ground.load(f"from {first.__name__} import double\n", where=ground.site)
    lazy.postpone_no_more()
    assert ground.ran == []
    assert {type(vars(user)[name]) for user, name in ((first, "Base"), (third, "double"))} == {Name}
    assert first.Base(3).value == 3
    late = sys.modules["late"]
    assert vars(first)["Base"] is vars(second)["B"] is vars(late)["Base"]
    assert vars(first)["double"] is vars(third)["double"] is vars(late)["double"]
    assert vars(first)["i"] is sys.modules["late.inner"]
    assert vars(second)["number"] == 7
    assert type(vars(second)["number"]) is int
    assert second.Mine.kind is vars(late)["Base"]
    assert type(late) is ModuleType
    assert inspect.getmodule(first.Base) is late


def test_what_a_user_has_put_in_its_place_stays(ground: Ground) -> None:
    ground.postpone()
    user = ground.load("from late import double, number\n")
    user.double = len
    assert user.number + 1 == 8
    assert user.double is len


PATCHES = [
    ("import late as m", "m.double = lambda value: 'mine'", "m.double(1)", "late.double(1)"),
    ("import late.inner as m", "m.canny = len", "m.canny('123')", "late.inner.canny('123')"),
    ("import late", "late.inner = 5", "late.inner", "late.inner"),
    (
        "import late.inner",
        "late.inner.canny = len",
        "late.inner.canny('1')",
        "late.inner.canny('1')",
    ),
    ("from late import Base", "Base.made = 9", "Base.made", "late.Base.made"),
    ("from late import inner", "inner.plain = len", "inner.plain('12')", "late.inner.plain('12')"),
    ("import late", "late.new = 3", "late.new", "late.new"),
    ("import late", "del late.number", "hasattr(late, 'number')", "hasattr(late, 'number')"),
    (
        "from late import Base",
        "del Base.made",
        "hasattr(Base, 'made')",
        "hasattr(late.Base, 'made')",
    ),
    (
        "import late",
        "late.Base.__init__ = lambda self: None",
        "vars(late.Base())",
        "vars(late.Base())",
    ),
    ("import late", "setattr(late, 'double', 5)", "late.double", "late.double"),
    ("import sys, late", "vars(sys.modules['late'])['double'] = 6", "late.double", "late.double"),
]


@pytest.mark.parametrize(("imports", "patch", "seen", "seen_by_others"), PATCHES)
def test_a_change_made_before_the_first_use_stays(
    ground: Ground, imports: str, patch: str, seen: str, seen_by_others: str
) -> None:
    """As node packs do it with ComfyUI's classes, while it boots."""
    source = f"{imports}\n{patch}\ndef answer(): return {seen}\n"
    other = (
        f"import late, late.inner\nfrom late import items\ndef answer(): return {seen_by_others}\n"
    )
    plain = [ground.load(source).answer(), ground.load(other).answer()]
    ground.forget()
    ground.postpone()
    user = ground.load(source)
    another = ground.load(other)
    assert another.items[0] == 1
    assert [user.answer(), another.answer()] == plain


def test_importers_keep_what_they_had_when_it_is_replaced_later(ground: Ground) -> None:
    ground.postpone()
    user = ground.load("from late import double\n")
    pack = ground.load("import late\nlate.double = len\n", where=ground.tree / "custom_nodes")
    assert user.double(4) == 8
    assert pack.late.double is len


@pytest.fixture
def torch() -> Any:
    """torch, imported before there is a `Ground`, which takes away what is imported later."""
    return importlib.import_module("torch")


def test_what_is_run_within_a_node_can_be_learned_with_all_the_same(
    torch: Any, ground: Ground
) -> None:
    """A node runs in torch's inference mode, a plain boot does not."""
    ground.lay({"tensors.py": "import torch\nhalf = torch.full((1,), 0.5)\n"})
    ground.postpone("tensors")
    user = ground.load("import tensors\n")
    with torch.inference_mode():
        assert torch.zeros(1).is_inference()
        assert not user.tensors.half.is_inference()
        assert torch.zeros(1).is_inference()


def test_a_function_is_not_taken_for_the_module_that_it_is_in(ground: Ground) -> None:
    """kornia.filters.canny is both."""
    ground.lay(
        {
            "both/__init__.py": "from .canny import canny, Canny\n",
            "both/canny.py": "def canny(): return 'edges'\nclass Canny: pass\n",
        }
    )
    ground.postpone("both")
    user = ground.load("from both import canny, Canny\ndef answer(): return canny()\n")
    late = ground.load("import both.canny\nfrom both import canny as c\nimport both\n")
    assert ground.ran == []
    assert user.answer() == "edges"
    assert late.c() == "edges"
    assert late.both.canny() == "edges"
    assert ground.ran == ["both", "both.canny"]


@pytest.mark.parametrize("is_over", [False, True])
@pytest.mark.parametrize(
    "wanted",
    [
        "import both.canny\nfrom both import canny\n",
        "from both.canny import Canny\nfrom both import canny\n",
        "import importlib\nimportlib.import_module('both.canny')\nfrom both import canny\n",
    ],
)
def test_a_package_keeps_its_names_when_a_pack_imports_what_is_below(
    ground: Ground, wanted: str, is_over: bool
) -> None:
    """The import system has asked whether the module is there before its package is run."""
    ground.lay(
        {
            "both/__init__.py": "from .canny import canny, Canny\nKIND = Canny\n",
            "both/canny.py": "def canny(): return 'edges'\nclass Canny: pass\n",
        }
    )
    ground.postpone("both")
    user = ground.load("import both\nfrom both import Canny\n")
    if is_over:
        lazy.postpone_no_more()
    pack = ground.load(wanted, where=ground.tree / "custom_nodes")
    assert pack.canny() == "edges"
    assert ground.ran == ["both", "both.canny"]
    assert sys.modules["both.canny"].Canny is user.both.KIND is vars(user)["Canny"]
    spec = sys.modules["both.canny"].__spec__
    assert spec is not None
    assert spec.origin == str(ground.site / "both" / "canny.py")
    user.both.canny = 5  # it is a package like any other
    assert user.both.canny == 5
    assert type(user.both) is ModuleType


@pytest.mark.parametrize("is_over", [False, True])
def test_a_package_is_run_before_what_others_import_from_below_it(
    ground: Ground, is_over: bool
) -> None:
    ground.lay(
        {
            "above/__init__.py": "state = ['ready']\n",
            "above/below.py": "import sys\nseen = sys.modules['above'].__dict__['state']\n",
        }
    )
    ground.postpone("above")
    ground.load("import above\n")
    if is_over:
        lazy.postpone_no_more()
    user = ground.load("def answer():\n    import above.below\n    return above.below.seen\n")
    assert ground.ran == []
    assert user.answer() == ["ready"]
    assert ground.ran == ["above", "above.below"]


def test_what_only_its_package_makes_is_found(ground: Ground) -> None:
    """As six.moves is, which is no file."""
    ground.lay(
        {
            "maker/__init__.py": """
                import sys, types
                made = types.ModuleType("maker.made")
                made.value = 5
                sys.modules["maker.made"] = made
            """
        }
    )
    ground.postpone("maker")
    user = ground.load("import maker.made\nfrom maker.made import value\n")
    assert user.value == 5
    assert user.maker.made is sys.modules["maker.made"]


@pytest.mark.parametrize(
    "imports",
    [
        "import nowhere",
        "from nowhere import x",
        "import late.nowhere",
        "from late.nowhere import x",
    ],
)
def test_what_is_not_there_is_told_at_once(ground: Ground, imports: str) -> None:
    ground.postpone("late", "nowhere")
    user = ground.load(f"try:\n    {imports}\nexcept ImportError as err:\n    told = err\n")
    assert isinstance(user.told, ModuleNotFoundError)
    assert user.told.name in {"nowhere", "late.nowhere"}


def test_a_name_that_is_not_there_is_told_at_its_first_use(ground: Ground) -> None:
    ground.postpone()
    user = ground.load("from late import nothing, double\n")
    for _ in range(2):
        with pytest.raises(ImportError, match="cannot import name 'nothing' from 'late'"):
            user.nothing()
    assert user.double(1) == 2
    other = ground.load("import late\n")
    with pytest.raises(AttributeError, match="module 'late' has no attribute 'nothing'"):
        other.late.nothing  # noqa: B018


def test_a_broken_package_is_told_at_each_use_until_it_works(ground: Ground) -> None:
    ground.log.broken = True  # type: ignore[attr-defined]
    ground.lay(
        {
            "broken.py": "if ground_log.broken: raise OSError('no libcudart')\nx = 1\ny = 2\n",
            "using.py": "import broken\nvalue = broken.x\n",
        }
    )
    ground.postpone("broken")
    user = ground.load("import broken\nfrom broken import x, y\n")
    for _ in range(2):
        with pytest.raises(OSError, match="no libcudart"):
            user.x + 1
        with pytest.raises(OSError, match="no libcudart"):
            user.broken.x  # noqa: B018
        with pytest.raises(OSError, match="no libcudart"):
            importlib.import_module("using")
    ground.log.broken = False  # type: ignore[attr-defined]
    assert user.x + user.broken.y == 3
    assert vars(user)["y"] == 2


def test_what_a_module_below_lacks_is_named(ground: Ground) -> None:
    """Not the module below, which is there."""
    ground.lay({"lacks/__init__.py": "", "lacks/much.py": "import not_installed_here\n"})
    ground.postpone("lacks")
    user = ground.load("from lacks import much\n")
    with pytest.raises(ModuleNotFoundError, match="not_installed_here"):
        user.much.x  # noqa: B018


def test_one_name_that_is_missing_does_not_spoil_the_others(ground: Ground) -> None:
    ground.postpone()
    user = ground.load("from late import no_such_thing, double, number\n")
    assert user.double(user.number) == 14
    assert type(vars(user)["number"]) is int


def test_a_module_that_puts_another_in_its_place(ground: Ground) -> None:
    """transformers does, with one that imports its classes when they are asked for."""
    ground.lay(
        {
            "swap/__init__.py": """
                import sys, types
                class Lazy(types.ModuleType):
                    def __getattr__(self, name):
                        if name.startswith("__"):
                            raise AttributeError(name)
                        ground_log.ran.append(name)
                        value = name.lower()
                        setattr(self, name, value)
                        return value
                it = Lazy(__name__)
                it.__spec__, it.__path__, it.__file__ = __spec__, __path__, __file__
                sys.modules[__name__] = it
            """,
            "swap/below.py": "value = 4\n",
        }
    )
    ground.postpone("swap")
    user = ground.load("import swap\nimport swap as s\nfrom swap import First, Second\n")
    other = ground.load("import swap.below\nfrom swap.below import value\n")
    assert ground.ran == []
    assert user.First.upper() == "FIRST"
    assert ground.ran == ["swap", "First"]
    real = sys.modules["swap"]
    assert vars(user)["swap"] is vars(user)["s"] is vars(other)["swap"] is real
    assert user.Second + "!" == "second!"
    assert vars(user)["Second"] == "second"
    assert other.value + 1 == 5
    assert real.below is sys.modules["swap.below"]
    user.swap.Mine = 3
    assert sys.modules["swap"].Mine == 3


def test_a_pack_that_imports_a_module_which_puts_another_in_its_place(ground: Ground) -> None:
    """The import system gives it the one that was there before the module was run."""
    ground.lay(
        {
            "swap.py": """
                import sys, types
                class Lazy(types.ModuleType):
                    def __getattr__(self, name):
                        if name.startswith("__"):
                            raise AttributeError(name)
                        return name.lower()
                it = Lazy(__name__)
                it.__spec__ = __spec__
                sys.modules[__name__] = it
            """
        }
    )
    ground.postpone("swap")
    ground.load("import swap\nfrom swap import First\n")
    pack = ground.load("import swap\nfrom swap import Second\n", where=ground.site)
    real = sys.modules["swap"]
    assert vars(pack)["Second"] == "second"
    pack.swap.Mine = 3
    assert real.Mine == 3
    assert (pack.swap.Third, "Mine" in dir(pack.swap), type(real).__name__) == (
        "third",
        True,
        "Lazy",
    )
    del pack.swap.Mine
    assert not hasattr(real, "__mine__")
    assert isinstance(pack.swap, ModuleType)
    assert vars(pack.swap) is vars(real)


@pytest.mark.parametrize("where", ["custom_nodes", "site"])
def test_only_the_tree_waits(ground: Ground, where: str) -> None:
    ground.postpone()
    place = ground.site if where == "site" else ground.tree / "custom_nodes"
    for count, imports in enumerate(("import late", "from late import double")):
        ground.forget()
        ground.load(imports, where=place / str(count))
        assert "late" in ground.ran


def test_an_importer_that_may_not_wait_finds_it_run(ground: Ground) -> None:
    ground.postpone()
    ground.load("import late\nfrom late import double\n")
    assert ground.ran == []
    pack = ground.load("from late import double, inner\n", where=ground.tree / "custom_nodes")
    assert ground.ran == ["late", "late.inner"]
    assert vars(pack)["double"] is sys.modules["late"].double


def test_within_a_function_nothing_waits(ground: Ground) -> None:
    ground.postpone()
    user = ground.load(
        """
        def answer():
            from late import double, inner
            import late.deep.er
            return type(double), type(inner), type(late.deep.er)
        """
    )
    assert [each.__name__ for each in user.answer()] == ["function", "module", "module"]


def test_only_who_is_named_waits(ground: Ground) -> None:
    ground.lay(
        {
            "named/__init__.py": "import late\nfrom late import double\n",
            "unnamed/__init__.py": "import late\n",
        }
    )
    ground.postpone("late", by="named")
    importlib.import_module("named")
    assert ground.ran == ["named"]
    ground.load("from late import double\n")
    assert "late" in ground.ran


def test_a_library_that_puts_off_a_part_of_itself_has_all_of_that_run(ground: Ground) -> None:
    """torch.export imports torch.export.custom_ops for what that registers."""
    ground.lay(
        {
            "whole/__init__.py": "import whole.part\nfrom whole.part import use\n",
            "whole/part/__init__.py": "import whole.part.registers\ndef use(): return 1\n",
            "whole/part/registers.py": "",
            "whole/late.py": "from whole.part import use\nkind = type(use)\n",
        }
    )
    ground.postpone("whole.part", by="whole")
    whole = importlib.import_module("whole")
    assert ground.ran == ["whole"]
    lazy.postpone_no_more()
    assert importlib.import_module("whole.late").kind.__name__ == "function"
    assert ground.ran == ["whole", "whole.late", "whole.part", "whole.part.registers"]
    assert whole.use() == 1


def test_nothing_waits_once_the_boot_is_over(ground: Ground) -> None:
    ground.postpone()
    ground.load("import late.inner\n")
    lazy.postpone_no_more()
    ground.load("from late.deep import er\n")
    assert "late.deep.er" in ground.ran


def test_what_belongs_together_is_run_together(ground: Ground) -> None:
    """Imports within the package are as usual once any of it is run."""
    ground.lay(
        {
            "pair/__init__.py": "from . import one\nfrom .two import pi\nimport pair.three as t\n",
            "pair/one.py": "from pair.two import pi\nfrom . import three\nONE = pi - three.x\n",
            "pair/two.py": "pi = 2\n",
            "pair/three.py": "from .two import *\nx = pi - 1\n",
        }
    )
    ground.postpone("pair")
    user = ground.load("import pair.one\nimport pair.three\nfrom pair import pi\n")
    assert ground.ran == []
    assert (user.pi + 0, user.pair.one.ONE, user.pair.t.x) == (2, 1, 1)
    assert ground.ran == ["pair", "pair.one", "pair.two", "pair.three"]


def asked_of_all(ask: Callable[[ModuleType], object]) -> None:
    for module in list(sys.modules.values()):
        ask(module)


def test_who_looks_at_all_modules_disturbs_nothing(ground: Ground) -> None:
    ground.postpone()
    user = ground.load("import late.deep.er\nfrom late import Base, double\n")
    with unittest.TestCase().assertWarns(UserWarning):
        warn = compile("import warnings; warnings.warn('x')", "<string>", "exec")
        exec(warn, {})  # noqa: S102
    inspect.getmodule(inspect.currentframe())
    asked_of_all(lambda module: getattr(module, "__file__", None))
    asked_of_all(lambda module: getattr(module, "__spec__", None))
    asked_of_all(repr)
    asked_of_all(lambda module: isinstance(module, ModuleType))
    assert ground.ran == []
    assert importlib.util.find_spec("late.deep.er") is not None
    assert user.double(1) == 2


def test_who_looks_into_all_modules_finds_what_is_there(ground: Ground) -> None:
    """pickle does, for what does not tell its module."""
    ground.lay({"found.py": "def wanted(): return 1\nwanted.__module__ = None\n"})
    ground.postpone("late", "found")
    user = ground.load("import late\nimport found\nfrom found import wanted\n")
    assert pickle.loads(pickle.dumps(user.found.wanted))() == 1  # noqa: S301


def test_source_and_files_are_found_before_it_is_run(ground: Ground) -> None:
    import pkgutil  # noqa: PLC0415
    from importlib import resources  # noqa: PLC0415

    (ground.site / "late" / "words.txt").write_text("a few words")
    ground.postpone()
    user = ground.load("import late.inner\n")
    assert "def canny" in inspect.getsource(sys.modules["late.inner"])
    assert pkgutil.get_data("late", "words.txt") == b"a few words"
    assert resources.files("late").joinpath("words.txt").read_text() == "a few words"
    assert user.late.inner.canny(1) == "edges of 1"


def test_it_can_be_loaded_anew(ground: Ground) -> None:
    ground.postpone()
    user = ground.load("import late.inner\n")
    user.late.inner.canny = len
    lazy.postpone_no_more()
    importlib.reload(user.late.inner)
    assert user.late.inner.canny(1) == "edges of 1"


TIMEOUT = 20.0


def test_many_threads_that_use_it_first_run_it_once(ground: Ground) -> None:
    inside, go, others = threading.Event(), threading.Event(), threading.Semaphore(0)
    ground.log.inside, ground.log.go = inside, go  # type: ignore[attr-defined]
    ground.lay({"slow.py": "ground_log.inside.set()\nground_log.go.wait(20)\nx = 5\ny = 6\n"})
    ground.postpone("slow")
    user = ground.load("import slow\nfrom slow import x\ndef answer(): return x + slow.y\n")

    def ask() -> int:
        others.release()
        answer: int = user.answer()
        return answer

    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(ask)
        assert inside.wait(TIMEOUT)
        rest = [pool.submit(ask) for _ in range(7)]
        for _ in range(8):
            assert others.acquire(timeout=TIMEOUT)
        assert not any(each.done() for each in (first, *rest))
        go.set()
        assert [each.result(TIMEOUT) for each in (first, *rest)] == [11] * 8
    assert ground.ran == ["slow"]


def answers_of_threads(*asked: Callable[[], Any]) -> list[Any]:
    """What all of them give, each in a thread of its own; it must come within a while."""
    with ThreadPoolExecutor(len(asked)) as pool:
        return [each.result(TIMEOUT) for each in [pool.submit(ask) for ask in asked]]


@pytest.mark.parametrize("attempt", range(3))
def test_two_threads_whose_modules_need_each_other(ground: Ground, attempt: int) -> None:
    one, two = threading.Event(), threading.Event()
    ground.log.events = SimpleNamespace(one=one, two=two)  # type: ignore[attr-defined]
    wait = "ground_log.events.{mine}.set()\nground_log.events.{theirs}.wait(0.1)\n"
    text = "x = 1\n" + wait + "import {theirs}\ny = {theirs}.x + 1\n"
    ground.lay(
        {
            "one.py": text.format(mine="one", theirs="two"),
            "two.py": text.format(mine="two", theirs="one"),
        }
    )
    ground.postpone("one", "two")
    user = ground.load("from one import y as first\nfrom two import y as second\n")
    asked = [lambda: user.first + 0, lambda: user.second + 0]
    assert answers_of_threads(*(asked[::-1] if attempt == 1 else asked)) == [2, 2]
    assert sorted(ground.ran) == ["one", "two"]


def test_a_package_and_what_is_below_it_from_two_threads(ground: Ground) -> None:
    both = threading.Barrier(2)
    ground.lay(
        {
            "house/__init__.py": "from house.room import rooms\nhouses = rooms + 1\n",
            "house/room.py": "rooms = 1\n",
        }
    )
    ground.postpone("house")
    user = ground.load("import house.room\nimport house\nfrom house.room import rooms\n")

    def after_both(ask: Callable[[], Any]) -> Callable[[], Any]:
        def waiting() -> Any:
            both.wait(TIMEOUT)
            return ask()

        return waiting

    asked = (after_both(lambda: user.house.houses), after_both(lambda: user.rooms + 0))
    assert answers_of_threads(*asked) == [2, 1]
    assert ground.ran == ["house", "house.room"]


def test_a_usual_import_in_another_thread_that_needs_the_same(ground: Ground) -> None:
    """Each holds what the other waits for: one goes on with what there is, as Python has it."""
    usual, late = threading.Event(), threading.Event()
    ground.log.events = SimpleNamespace(usual=usual, late=late)  # type: ignore[attr-defined]
    ground.lay(
        {
            "usual.py": "A = 1\nground_log.events.usual.set()\nground_log.events.late.wait(5)\n"
            "import later\nB = later.A\n",
            "later.py": "A = 1\nground_log.events.late.set()\nground_log.events.usual.wait(5)\n"
            "import usual\nB = usual.A\n",
        }
    )
    ground.postpone("later")
    user = ground.load("import later\n")
    got = answers_of_threads(
        lambda: importlib.import_module("usual").B, lambda: (usual.wait(5), user.later.B)[1]
    )
    assert got == [1, 1]
    assert sorted(ground.ran) == ["later", "usual"]


ASSETS = {
    "app/__init__.py": "",
    "app/assets/__init__.py": "",
    "app/assets/seeder.py": """
        class Seeder:
            disabled = False
            def disable(self): self.disabled = True
            def is_disabled(self): return self.disabled
        asset_seeder = Seeder()
    """,
    "app/database/__init__.py": "",
    "app/database/db.py": "began = []\ndef init_db(): began.append('database')\n",
}
BOOT = """
from app.assets.seeder import asset_seeder
from app.database.db import init_db
asset_seeder.disable()
init_db()
"""


def test_the_boot_is_answered_for_the_assets_which_are_off(ground: Ground) -> None:
    ground.lay(ASSETS, ground.tree)
    lazy.postpone(str(ground.tree), [])
    sys.path.insert(0, str(ground.tree))
    try:
        user = ground.load(BOOT)
        assert ground.ran == ["app"]
        assert user.asset_seeder.is_disabled()
        used = ground.load("import app.assets.seeder as s\nimport app.database.db as d\n")
        assert used.s.asset_seeder.is_disabled()
        assert used.d.began == ["database"]
    finally:
        sys.path.remove(str(ground.tree))


def test_assets_that_are_on_do_not_wait(ground: Ground) -> None:
    ground.lay(ASSETS, ground.tree)
    lazy.postpone(str(ground.tree), ["--enable-assets"])
    sys.path.insert(0, str(ground.tree))
    try:
        user = ground.load(BOOT)
        assert "app.assets.seeder" in ground.ran
        assert "app.database.db" in ground.ran
        assert type(user.asset_seeder).__name__ == "Seeder"
        assert sys.modules["app.database.db"].began == ["database"]
    finally:
        sys.path.remove(str(ground.tree))


def test_a_second_call_changes_the_arguments_alone(ground: Ground) -> None:
    """A forked ComfyUI has had libraries put off before its arguments were known."""
    for arguments in ([], ["--enable-assets"]):
        lazy.postpone(str(ground.tree) + os.sep, arguments)
    (postponer,) = [each for each in sys.meta_path if isinstance(each, Postponer)]
    assert sys.meta_path[0] is postponer
    ground.lay(ASSETS, ground.tree)
    sys.path.insert(0, str(ground.tree))
    try:
        ground.load("import app.assets.seeder\nimport app.database.db\n")
        assert "app.assets.seeder" in ground.ran
    finally:
        sys.path.remove(str(ground.tree))


@pytest.mark.parametrize("value", ["1", "0", "", "true"])
def test_it_is_wanted_where_its_variable_says_so(value: str) -> None:
    assert lazy.is_wanted({lazy.VARIABLE: value}) == (value == "1")
    assert not lazy.is_wanted({})


def test_an_unrun_module_stays_one_until_it_is_used(ground: Ground) -> None:
    ground.postpone()
    user = ground.load("import late\n")
    assert type(vars(user)["late"]) is Unrun
    assert user.late.__name__ == "late"
    assert list(user.late.__path__) == [str(ground.site / "late")]
    assert ground.ran == []
    assert "double" in dir(user.late)
    assert type(user.late) is ModuleType
