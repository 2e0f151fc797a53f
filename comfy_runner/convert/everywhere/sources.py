"""What each sender sends, and where that comes from."""

from collections.abc import Iterator
from typing import NamedTuple

from comfy_runner.convert.everywhere import marks
from comfy_runner.convert.network import Kind, NetNode, Network
from comfy_runner.convert.resolve import input_slots
from comfy_runner.convert.ui import BYPASS, INPUT_NODE, UiLink, identifier

PROMPT_NAMES = ("positive", "negative")
"""What a new `Prompts Everywhere` calls its inputs, in English."""


class Source(NamedTuple):
    """What a sender sends, before it is asked to whom."""

    place: int
    """Number of the sender's input or output."""
    name: str
    origin: str
    slot: int
    type: str


def sources(network: Network, sender: NetNode) -> Iterator[Source]:
    """What a sender sends: its own outputs, or what its inputs get."""
    ue = marks.settings(sender)
    if marks.file_type(sender) == marks.SEED or ue.get("seed_inputs"):
        yield Source(0, "", sender.node.id, 0, "INT")
    elif sender.kind is Kind.SENDER:
        yield from _passed_on(network, sender)
    else:
        silent = ue.get("output_not_broadcasting")
        entries = marks.raw_slots(sender, "outputs")
        slots = zip(entries, sender.node.outputs(), strict=True)
        for place, (entry, (name, kind)) in enumerate(slots):
            if not (isinstance(silent, dict) and silent.get(name)):
                label = marks.text_of(entry, "label") or name
                yield Source(place, label, sender.node.id, place, kind)


def _passed_on(network: Network, sender: NetNode) -> Iterator[Source]:
    for place, entry in enumerate(marks.raw_slots(sender, "inputs")):
        # By place: old files have inputs of one name.
        link = network.links.get(identifier(entry.get("link")) or "")
        if link is None or str(entry.get("name", "")).endswith("_regex"):
            continue
        link = past_bypassed(network, link) or link
        label = marks.text_of(entry, "label", "name")
        if sender.node.type == marks.PROMPTS and place < len(PROMPT_NAMES):
            label = PROMPT_NAMES[place]
        yield Source(place, label, link.origin, link.slot, _type_of(network, link))


def past_bypassed(network: Network, link: UiLink) -> UiLink | None:
    """The link that a bypassed node passes on, from the first that is not bypassed."""
    seen: set[str] = set()
    while link.origin != INPUT_NODE:
        origin = network.nodes.get(link.origin)
        if origin is None or origin.node.id in seen:
            return None
        if origin.node.mode != BYPASS:
            return link
        seen.add(origin.node.id)
        slots = input_slots(network, origin)
        fitting = [name for name, kind in slots if kind == link.type]
        if link.slot < len(slots) and slots[link.slot][1] == link.type:
            fitting = [slots[link.slot][0]]
        onward = network.links.get(origin.links.get(fitting[0], "")) if fitting else None
        if onward is None:
            return None
        link = onward
    return link


def _type_of(network: Network, link: UiLink) -> str:
    """The link's type, or else that of the output it comes from."""
    if link.type != "*":
        return link.type
    if link.origin == INPUT_NODE:
        kinds = [port.type for port in network.inputs]
    else:
        origin = network.nodes.get(link.origin)
        kinds = [] if origin is None else [kind for _, kind in origin.node.outputs()]
    return kinds[link.slot] if link.slot < len(kinds) else "*"
