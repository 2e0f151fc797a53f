"""What the editor's file itself tells of nodes whose class is not installed."""

from collections.abc import Iterator, Mapping

from comfy_runner.convert.ui import UiNode
from comfy_runner.errors import Problem
from comfy_runner.graph import missing
from comfy_runner.graph.missing import Origin
from comfy_runner.graph.nodes import NodeCatalog
from comfy_runner.graph.workflow import Node

FLOWING = frozenset(
    {"IMAGE", "MASK", "LATENT", "MODEL", "CLIP", "VAE", "CONDITIONING", "CONTROL_NET", "AUDIO"}
    | {"VIDEO", "NOISE", "GUIDER", "SAMPLER", "SIGMAS", "CLIP_VISION", "CLIP_VISION_OUTPUT"}
    | {"STYLE_MODEL", "UPSCALE_MODEL", "INT", "FLOAT", "BOOLEAN"}
)
"""Types that nodes pass on to other nodes."""


def may_be_output(node: UiNode, *, is_taken: bool) -> bool:
    """Whether a node of an unknown class, connected somehow, may be a reason to run the graph.

    The bundled index knows it of well-known packs. Of any other class it may be one where no other
    node takes what it gives (`is_taken`), it takes something itself, and it gives nothing that
    nodes pass on: those that save or show often give a text or a name of files.
    """
    told = missing.is_output(node.type)
    if told is not None:
        return told
    if is_taken or all(slot.link is None for slot in node.slots):
        return False
    return not any(kind in FLOWING for _, kind in node.outputs())


def report(unknown: Mapping[str, UiNode], catalog: NodeCatalog) -> Iterator[Problem]:
    """One problem for each class of these nodes, given by their id in the API workflow."""
    nodes = {key: Node(key, node.type, {}, node.title) for key, node in unknown.items()}
    return missing.report(nodes, catalog, {key: origin(node) for key, node in unknown.items()})


def origin(node: UiNode) -> Origin:
    """The pack that the editor noted when it made the node (`cnr_id`, `aux_id`, `ver`)."""
    properties = node.properties
    pack = properties.get("cnr_id") or properties.get("aux_id")
    version = properties.get("ver")
    return Origin(
        pack if isinstance(pack, str) else "", version if isinstance(version, str) else ""
    )
