"""Which pack has a node class: the lock's, the one that the file names, or a well-known one."""

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from comfy_runner.convert import packs as front_ends
from comfy_runner.convert import ui
from comfy_runner.convert.groups import unpack
from comfy_runner.convert.ids import renumber
from comfy_runner.convert.missing import origin
from comfy_runner.convert.network import EDITOR_NODES
from comfy_runner.graph import missing
from comfy_runner.graph.document import is_editor
from comfy_runner.graph.missing import CORE, OWNER_AND_NAME, UUID, Origin
from comfy_runner.graph.nodes import NodeCatalog
from comfy_runner.graph.workflow import parse
from comfy_runner.packs.lock import (
    COMMIT,
    REGISTRY_ID,
    REGISTRY_VERSION,
    GitSource,
    LockedPack,
    PackLock,
    RegistrySource,
)

LEFT_OUT = (2, 4)
"""Modes of muted and bypassed nodes (front end 1.47.12, `LGraphEventMode`)."""


@dataclass(frozen=True, slots=True)
class Use:
    """A node class that a workflow has, and what the file says of where it comes from."""

    class_type: str
    origins: tuple[Origin, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """Where one node class comes from."""

    class_type: str
    builtin: bool
    """Whether ComfyUI itself has it."""
    locked: tuple[LockedPack, ...]
    """Packs of the lock that have it."""
    commands: tuple[str, ...]
    """What to type to add a pack that has it, the best guess first; empty where it is there, and
    where nobody knows."""
    source: str = ""
    """Who says so: `the workflow` or `the list of well-known packs`."""
    similar: tuple[str, ...] = ()
    """Names that it may be misspelt for, where nothing else is known."""


def uses(graph: Mapping[str, Any], catalog: NodeCatalog) -> tuple[Use, ...]:
    """The node classes of a workflow's graph in either format, in its order, each once.

    Nodes that are muted, bypassed, or known to the editor alone do not count.

    Raises: `InvalidWorkflow`.
    """
    found: dict[str, list[Origin]] = {}
    for class_type, named in _nodes(graph, catalog):
        origins = found.setdefault(class_type, [])
        if named.pack and named not in origins:
            origins.append(named)
    return tuple(Use(name, tuple(origins)) for name, origins in found.items())


def why(use: Use, lock: PackLock, catalog: NodeCatalog) -> Answer:
    """Where a class comes from; `catalog` has ComfyUI's own classes only."""
    name = use.class_type
    if name in catalog:
        return Answer(name, True, (), ())
    # The file may name a pack whose classes are not known, but which is in the lock.
    locked = lock.with_class(name) or tuple(_named_in(lock, use.origins))
    if locked:
        return Answer(name, False, locked, ())
    named = [command for named in use.origins if (command := _command(named))]
    if named:
        return Answer(name, False, (), tuple(named), "the workflow")
    known = [f"comfy-runner nodes add {pack.url}" for pack in missing.packs_with(name)]
    if known:
        return Answer(name, False, (), tuple(known), "the list of well-known packs")
    names = {each for pack in lock.packs for each in pack.classes}
    similar = [*catalog.similar(name), *(n for n in names if n.casefold() == name.casefold())]
    return Answer(name, False, (), (), similar=tuple(dict.fromkeys(similar)))


def _nodes(graph: Mapping[str, Any], catalog: NodeCatalog) -> Iterator[tuple[str, Origin]]:
    if not is_editor(graph):
        yield from ((node.class_type, Origin()) for node in parse(graph).nodes.values())
        return
    document = unpack(renumber(ui.read(graph)), catalog)
    graphs = [document.root, *(each.graph for each in document.definitions.values())]
    for node in (node for each in graphs for node in each.nodes.values()):
        known = node.type in EDITOR_NODES or node.type in front_ends.PACKS.kinds
        is_instance = node.type in document.definitions or UUID.fullmatch(node.type)
        if not known and not is_instance and node.mode not in LEFT_OUT:
            yield node.type, origin(node)


def _named_in(lock: PackLock, origins: Iterable[Origin]) -> Iterator[LockedPack]:
    for named in origins:
        wanted = named.pack.casefold()
        address = missing.address_of(named.pack).casefold()
        for pack in lock.packs:
            match pack.source:
                case RegistrySource(id=id) if id.casefold() == wanted:
                    yield pack
                case GitSource(url=url) if OWNER_AND_NAME.fullmatch(wanted) or address:
                    here = url.casefold().removesuffix(".git")
                    if here in (address, f"https://github.com/{wanted}"):
                        yield pack


def _command(named: Origin) -> str:
    """What to type to add the pack that a node names; empty where that makes no sense.

    The file is a stranger's: what stands in it must be an id, and is quoted.
    """
    if named.pack == CORE:
        return ""
    place, ref = named.pack, named.version
    if not OWNER_AND_NAME.fullmatch(place):
        if not REGISTRY_ID.fullmatch(place):
            return ""
        if COMMIT.fullmatch(ref):  # of a nightly: the registry knows only versions
            address = missing.address_of(place)
            place, ref = (address, ref) if address else (place, "")
    command = f"comfy-runner nodes add {shlex.quote(place)}"
    if ref and REGISTRY_VERSION.fullmatch(ref):
        command += f" --ref {shlex.quote(ref)}"
    return command
