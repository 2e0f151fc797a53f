"""What holds for every conversion, of random files and of real ones that were damaged."""

import copy
import json
import random
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pytest
from editor_files import TEMPLATES, core, document, recorded, sent, subgraph, ui
from hypothesis import given, settings
from hypothesis import strategies as st

from comfy_runner.convert import convert
from comfy_runner.errors import CallerError
from comfy_runner.graph.workflow import Workflow

CONTROL = "control"
"""The place of a control value among a class's values."""


class Kind:
    """A class of ComfyUI, as it stands in a file."""

    def __init__(self, sockets: dict[str, str], values: Mapping[str, Any], output: str) -> None:
        self.sockets = sockets
        """Name to type of each input that is only connected."""
        self.values = values
        """Name to strategy of each value, in the order of `widgets_values`."""
        self.output = output


INTEGERS = st.integers(-(2**64), 2**64)
WORDS = st.text("abc xyz.,é漢", max_size=8)
KINDS = {
    "EmptyImage": Kind(
        {},
        {"width": INTEGERS, "height": INTEGERS, "batch_size": INTEGERS, "color": INTEGERS},
        "IMAGE",
    ),
    "ImageInvert": Kind({"image": "IMAGE"}, {}, "IMAGE"),
    "ImageBatch": Kind({"image1": "IMAGE", "image2": "IMAGE"}, {}, "IMAGE"),
    "SaveImage": Kind({"images": "IMAGE"}, {"filename_prefix": WORDS}, ""),
    "PrimitiveInt": Kind({}, {"value": INTEGERS, CONTROL: st.just("fixed")}, "INT"),
    "PrimitiveString": Kind({}, {"value": WORDS}, "STRING"),
    "CLIPTextEncode": Kind({"clip": "CLIP"}, {"text": WORDS}, "CONDITIONING"),
    "KSampler": Kind(
        {"model": "MODEL", "positive": "CONDITIONING"},
        {
            "seed": INTEGERS,
            CONTROL: st.sampled_from(["fixed", "randomize"]),
            "steps": INTEGERS,
            "cfg": st.floats(0, 100),
            "sampler_name": WORDS,
            "scheduler": WORDS,
            "denoise": st.one_of(st.none(), st.floats(0, 1)),
        },
        "LATENT",
    ),
}
WIDGET_TYPES = {"width": "INT", "steps": "INT", "text": "STRING", "filename_prefix": "STRING"}
"""Values that may be connected too."""


@st.composite
def twins(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """An API graph, and the file whose graph it is."""
    ids = draw(st.lists(st.integers(1, 99), min_size=1, max_size=8, unique=True))
    api: dict[str, Any] = {}
    nodes: list[Any] = []
    links: list[Any] = []
    makers: dict[str, list[int]] = {}
    for node_id in ids:
        class_type = draw(st.sampled_from(sorted(KINDS)))
        kind = KINDS[class_type]
        values = {name: draw(strategy) for name, strategy in kind.values.items()}
        node = ui(node_id, class_type, list(values.values()))
        inputs = {name: value for name, value in values.items() if name != CONTROL}
        wanted = kind.sockets | {n: t for n, t in WIDGET_TYPES.items() if n in inputs}
        for name, wanted_type in wanted.items():
            sources = makers.get(wanted_type, [])
            if sources and draw(st.booleans()):
                source = draw(st.sampled_from(sources))
                inputs[name] = [str(source), 0]
                at = source
                for _ in range(draw(st.integers(0, 2))):
                    detour = 100 + len(nodes) + len(links)
                    links.append((len(links), at, 0, detour, 0, wanted_type))
                    nodes.append(ui(detour, "Reroute", links={"": links[-1][0]}))
                    at = detour
                links.append((len(links), at, 0, node_id, 0, wanted_type))
                node["inputs"].append({"name": name, "type": wanted_type, "link": links[-1][0]})
        api[str(node_id)] = {"class_type": class_type, "inputs": inputs}
        nodes.append(node)
        makers.setdefault(kind.output, []).append(node_id)
    order = draw(st.permutations(nodes))
    return api, document(order, draw(st.permutations(links)))


def plain(api: Mapping[str, Any]) -> dict[str, Any]:
    """A graph without titles."""
    return {
        key: {"class_type": node["class_type"], "inputs": node["inputs"]}
        for key, node in api.items()
    }


@settings(deadline=None)
@given(twins())
def test_a_file_is_converted_back_to_the_graph_that_it_was_made_from(
    pair: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    api, file = pair
    assert plain(sent(file)) == api


ANY_TYPE = st.sampled_from(
    [*KINDS, "Reroute", "PrimitiveNode", "Note", "PreviewAny", "NoSuchNode", "A", "B", "C"]
)
NAMES = [*WIDGET_TYPES, "image", "images", "image1", "clip", "model", "source", "", "a", "b"]
VALUES = st.lists(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), WORDS, st.just([1]), st.just({"a": 1})),
    max_size=6,
)


@st.composite
def graphs(draw: st.DrawFn, first: int, outside: tuple[int, ...]) -> tuple[list[Any], list[Any]]:
    """Nodes with ids from `first` on, and links between them and from `outside`."""
    count = draw(st.integers(0, 6))
    ids = [first + number for number in range(count)]
    nodes: list[Any] = []
    links: list[Any] = []
    for node_id in ids:
        names = draw(st.lists(st.sampled_from(NAMES), max_size=3, unique=True))
        taken = {}
        for name in names:
            origin = draw(st.sampled_from([*ids, *outside]))
            links.append((len(links), origin, draw(st.integers(0, 2)), node_id, 0, "*"))
            taken[name] = links[-1][0]
        outputs = [{"name": "x", "type": "*"}] * draw(st.integers(0, 2))
        mode = draw(st.sampled_from([0, 0, 0, 2, 4]))
        node = ui(node_id, draw(ANY_TYPE), draw(VALUES), links=taken, mode=mode, outputs=outputs)
        nodes.append(node)
    return nodes, links


PORTS = [("a", "IMAGE"), ("b", "*")]


@st.composite
def files(draw: st.DrawFn) -> dict[str, Any]:
    """A file that may well be broken; its subgraphs may hold themselves."""
    nodes, links = draw(graphs(1, ()))
    definitions = []
    for number, key in enumerate("AB", 1):
        inner, inside = draw(graphs(100 * number, (-10,)))
        if inner:
            origin = draw(st.sampled_from([node["id"] for node in inner] + [-10]))
            inside.append((len(inside), origin, 0, -20, 0, "*"))
        definitions.append(subgraph(key, inner, inside, PORTS, PORTS[:1]))
    return document(nodes, links, definitions)


def check(workflow: Workflow) -> None:
    """Every link ends at a node, and every class is installed."""
    for node in workflow.nodes.values():
        assert node.class_type in core()
        for name, link in node.links():
            assert link.node_id in workflow.nodes, (node.id, name, link)


def outcome(file: Any) -> Any:
    """What is sent for a file, or every problem that it has."""
    try:
        made = convert(file, core())
    except CallerError as err:
        return told(err)
    check(made.workflow)
    return made.workflow.to_json()


def told(err: CallerError) -> set[str]:
    """Every problem, each of which names its node, or its place where it is no node."""
    assert err.problems
    for problem in err.problems:
        assert problem.node_id or problem.what.startswith("Entry "), problem
    return {problem.where + problem.what for problem in err.problems}


@settings(deadline=None)
@given(files())
def test_a_conversion_changes_nothing_and_gives_the_same_twice(file: dict[str, Any]) -> None:
    before = copy.deepcopy(file)
    first = outcome(file)
    assert file == before
    second = outcome(json.loads(json.dumps(file)))
    assert second == first
    if isinstance(first, dict):
        assert list(second) == list(first)


@settings(deadline=None)
@given(files(), st.randoms(use_true_random=False))
def test_the_order_of_the_nodes_in_the_file_does_not_change_what_is_sent(
    file: dict[str, Any], shuffler: random.Random
) -> None:
    first = outcome(file)
    shuffler.shuffle(file["nodes"])
    shuffler.shuffle(file["links"])
    second = outcome(file)
    if isinstance(first, dict):
        assert second == first
    else:
        assert isinstance(second, set)


ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 7.5, 10**30, "", "x", "0", "-10"),
    *([], {}, [None], [[]], {"a": None}, [1, 2, 3, 4, 5], ["-1", "x"], float("nan")),
)
"""What any part of a file is replaced by."""

FIELDS = ("id", "type", "mode", "inputs", "outputs", "widgets_values", "properties", "title")


class Damage:
    """Changes to a file that no editor would make, each of which may find nothing to change."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - it must be the same every time

    def damaged(self, file: Any) -> Any:
        """A copy with one to five faults."""
        made = copy.deepcopy(file)
        for _ in range(self._random.randint(1, 5)):
            self._pick(self._ways())(made)
        return made

    def _pick(self, items: Any) -> Any:
        return self._random.choice(items)

    def _ways(self) -> list[Callable[[Any], None]]:
        return [self._member, self._field, self._field, self._node, self._link, self._definition]

    def _graph(self, file: Any) -> Any:
        """The root, or one definition."""
        found = [item for item in self._definitions(file) if isinstance(item, dict)]
        return self._pick([file, *found])

    def _definitions(self, file: Any) -> list[Any]:
        definitions = file.get("definitions")
        subgraphs = definitions.get("subgraphs") if isinstance(definitions, dict) else None
        return subgraphs if isinstance(subgraphs, list) else []

    def _spoil(self, parent: Any, key: Any) -> None:
        """Replace, shorten, shuffle or double one value."""
        old = parent[key]
        way = self._random.randrange(5)
        if isinstance(old, list) and old and way:
            if way == 1:
                del old[self._random.randrange(len(old)) :]
            elif way == 2:
                self._random.shuffle(old)
            elif way == 3:
                old.insert(0, copy.deepcopy(self._pick(old)))
            else:
                self._spoil(old, self._random.randrange(len(old)))
        elif isinstance(old, dict) and old and way:
            self._spoil(old, self._pick(sorted(old)))
        else:
            parent[key] = copy.deepcopy(self._pick(ODD))

    def _member(self, file: Any) -> None:
        graph = self._graph(file)
        names = (
            "links",
            "inputs",
            "outputs",
            "definitions",
            "extra",
            "last_node_id",
            "id",
            "state",
        )
        self._spoil(graph, self._pick([name for name in names if name in graph]))

    def _nodes(self, file: Any) -> list[Any]:
        nodes = self._graph(file).get("nodes")
        return nodes if isinstance(nodes, list) else []

    def _field(self, file: Any) -> None:
        nodes = [node for node in self._nodes(file) if isinstance(node, dict)]
        if nodes:
            node = self._pick(nodes)
            present = [name for name in FIELDS if name in node]
            if present:
                self._spoil(node, self._pick(present))

    def _node(self, file: Any) -> None:
        nodes = self._nodes(file)
        if not nodes:
            return
        place = self._random.randrange(len(nodes))
        match self._random.randrange(5):
            case 0:
                del nodes[place]
            case 1:
                nodes[place] = self._pick(ODD)
            case 2:
                self._random.shuffle(nodes)
            case 3:
                other = self._pick(nodes)
                if isinstance(nodes[place], dict) and isinstance(other, dict):
                    nodes[place]["type"] = other.get("type")
            case _:
                if isinstance(nodes[place], dict):
                    nodes[place]["mode"] = self._pick([2, 4])

    def _link(self, file: Any) -> None:
        links = self._graph(file).get("links")
        if isinstance(links, list) and links:
            place = self._random.randrange(len(links))
            if self._random.randrange(2):
                del links[place]
            else:
                self._spoil(links, place)

    def _definition(self, file: Any) -> None:
        subgraphs = self._definitions(file)
        if subgraphs:
            del subgraphs[self._random.randrange(len(subgraphs))]


@cache
def small_templates() -> list[Any]:
    """Real workflows, the smaller ones, half of them with subgraphs."""
    paths = sorted(TEMPLATES / f"{name}.json" for name in recorded("templates.prompts"))
    files = [json.loads(path.read_bytes()) for path in paths if path.stat().st_size < 60_000]
    nested = [file for file in files if file.get("definitions", {}).get("subgraphs")]
    return nested[:40] + [file for file in files if file not in nested][:40]


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_file_is_sent_or_refused_by_name(seed: int) -> None:
    damage = Damage(seed)
    refused = 0
    for file in small_templates():
        broken = damage.damaged(file)
        before = repr(broken)
        refused += isinstance(outcome(broken), set)
        assert repr(broken) == before
    assert 0 < refused < len(small_templates())
