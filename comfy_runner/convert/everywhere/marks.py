"""What the pack writes into the nodes of a file, and how to know its own."""

from collections.abc import Mapping
from typing import Any

from comfy_runner.convert.network import Kind, NetNode

SEED = "Seed Everywhere"
PROMPTS = "Prompts Everywhere"


def is_sender(node: NetNode) -> bool:
    """Whether it is a node of the pack, or one whose outputs its author spreads."""
    return not is_plain(node) or bool(node.node.properties.get("ue_convert"))


def is_plain(node: NetNode) -> bool:
    """Whether it is a node of its own, not one of the pack's."""
    return node.kind is not Kind.SENDER and file_type(node) != SEED


def file_type(node: NetNode) -> str:
    """The type in the file, where its successor may stand for it now."""
    return str(node.node.raw.get("type"))


def is_old(node: NetNode) -> bool:
    """Whether a version before 7 saved it."""
    return not node.node.properties.get("ue_convert") and not settings(node).get("version")


def settings(node: NetNode) -> Mapping[str, Any]:
    """What version 7 keeps in a node, `ue_properties`."""
    found = node.node.properties.get("ue_properties")
    return found if isinstance(found, dict) else {}


def raw_slots(node: NetNode, side: str) -> list[Mapping[str, Any]]:
    """The `inputs` or `outputs` of a node as the file has them."""
    raw = node.node.raw.get(side)
    return [entry for entry in raw if isinstance(entry, dict)] if isinstance(raw, list) else []


def text_of(entry: Mapping[str, Any], *names: str) -> str:
    """The first of an entry's members that is a text and not empty."""
    values = (entry.get(name) for name in names)
    return next((value for value in values if isinstance(value, str) and value), "")
