"""What to say about nodes whose class is not installed: who needs it, and which pack has it."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from importlib import resources

from comfy_runner.errors import Problem
from comfy_runner.graph.nodes import NodeCatalog
from comfy_runner.graph.workflow import Node

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
"""What the editor calls a node that stands for a subgraph."""

OWNER_AND_NAME = re.compile(r"[\w.-]+/[\w.-]+")

ALIKE = 0.8
"""How much a class must look like the missing one to be offered (0 to 1): packs call their nodes
by the same few words, so that less says nothing."""

SHOWN_NODES = 12
"""How many nodes of one class an error names before it only counts them."""

CORE = "comfy-core"
"""What the editor calls ComfyUI itself where it names a node's pack."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a node comes from, as the file itself tells (`properties` of the editor's nodes)."""

    pack: str = ""
    """Id in the Comfy Registry (`cnr_id`), or `owner/name` on GitHub (`aux_id`)."""
    version: str = ""
    """Version number or commit (`ver`)."""

    def __str__(self) -> str:
        url = _index().urls.get(self.pack.casefold(), "")
        if OWNER_AND_NAME.fullmatch(self.pack):
            url = f"https://github.com/{self.pack}"
        return " ".join(filter(None, (self.pack, self.version, f"({url})" if url else "")))


@dataclass(frozen=True, slots=True)
class Pack:
    """A well-known pack of custom nodes."""

    id: str
    """Its id in the Comfy Registry."""
    url: str

    def __str__(self) -> str:
        return f"{self.id} ({self.url})"


def report(
    nodes: Mapping[str, Node], catalog: NodeCatalog, origins: Mapping[str, Origin]
) -> Iterator[Problem]:
    """One problem for each class that `nodes`, by id, have and the catalog lacks.

    It names the nodes of the class, and the pack: the one that the file names (`origins`, by node
    id), else those of the bundled index that have such a class.
    """
    users: dict[str, list[Node]] = {}
    for node in nodes.values():
        if node.class_type not in catalog:
            users.setdefault(node.class_type, []).append(node)
    for class_type, needing in users.items():
        first, others = needing[0], needing[1:]
        named = dict.fromkeys(
            origins[node.id] for node in needing if node.id in origins and origins[node.id].pack
        )
        yield first.problem(
            "unknown_class_type",
            f"No node class {class_type!r} is installed{_also(others)}.",
            _cure(class_type, list(named), catalog),
        )


def _also(others: list[Node]) -> str:
    """The other nodes of a class, with the titles that their author gave them."""
    shown = [
        f"{node.id} ({node.title})" if node.title not in ("", node.class_type) else node.id
        for node in others[:SHOWN_NODES]
    ]
    left = len(others) - len(shown)
    nodes = f"node{'s' * (len(others) > 1)} {', '.join(shown)}"
    return f", also needed by {nodes}{f' and {left} more' if left else ''}" if others else ""


def packs_with(class_type: str) -> tuple[Pack, ...]:
    """The well-known packs that have a class of that name."""
    return _index().packs.get(class_type, ())


def address_of(pack_id: str) -> str:
    """The git address of a well-known pack by its id in the Comfy Registry; empty for another."""
    return _index().urls.get(pack_id.casefold(), "")


def is_output(class_type: str) -> bool | None:
    """Whether packs say that the class is a reason to run (`OUTPUT_NODE`); None where unknown."""
    index = _index()
    return class_type in index.outputs if class_type in index.packs else None


def _cure(class_type: str, named: list[Origin], catalog: NodeCatalog) -> str:
    """Where to get the class from, or what to do without it."""
    if UUID.fullmatch(class_type):
        return "It stands for a subgraph whose definition is not in the file: save it again."
    if class_type.startswith(("workflow>", "workflow/")):
        return "It is a group node whose definition is not in the file: save it again."
    if class_type in _index().api_nodes:
        return "It calls a paid service of ComfyUI's makers, which is switched off here: mute it."
    if named and named[0].pack == CORE:
        version = f", {named[0].version}" if named[0].version else ""
        return f"The file was saved with another ComfyUI{version}, which had it: replace the node."
    if named:
        where = f"The file says that it comes from {' or '.join(map(str, named))}. A"
    elif packs := packs_with(class_type):
        where = f"It comes from {' or '.join(map(str, packs))}. A"
    elif names := [name for name in catalog.similar(class_type) if _alike(class_type, name)]:
        where = f"Did you mean {' or '.join(map(repr, names))}? If not, a"
    else:
        where = "A"
    return f"{where}dd its pack (`comfy-runner nodes why WORKFLOW` tells how), or mute the node."


def _alike(one: str, other: str) -> bool:
    return SequenceMatcher(None, one.casefold(), other.casefold()).ratio() >= ALIKE


@dataclass(frozen=True, slots=True)
class _Index:
    """What packs.json holds, by what is asked for."""

    packs: Mapping[str, tuple[Pack, ...]]
    """Class to the packs that have it."""
    outputs: frozenset[str]
    """Those of them that are a reason to run the graph."""
    urls: Mapping[str, str]
    """Id of a pack, in lower case, to its address: real files spell ids in any case."""
    api_nodes: frozenset[str]
    """Classes of ComfyUI itself that call paid services."""


@cache
def _index() -> _Index:
    text = resources.files(__package__).joinpath("packs.json").read_text(encoding="utf-8")
    raw = json.loads(text)
    packs: dict[str, tuple[Pack, ...]] = {}
    for pack_id, entry in raw["packs"].items():
        pack = Pack(pack_id, entry["url"])
        for class_type in entry["classes"]:
            packs[class_type] = (*packs.get(class_type, ()), pack)
    urls = {pack_id.casefold(): entry["url"] for pack_id, entry in raw["packs"].items()}
    outputs = frozenset(
        name for entry in raw["packs"].values() for name in entry.get("outputs", ())
    )
    return _Index(packs, outputs, urls, frozenset(raw["api_nodes"]))
