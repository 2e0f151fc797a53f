"""What packs leave to chance: seeds that mean a new one each time, and the Random Unmuter."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from comfy_runner.convert.layout import Grouped
from comfy_runner.convert.network import NetNode, Network
from comfy_runner.convert.text import Dice
from comfy_runner.convert.ui import NEVER, UiNode

SEED = "Seed (rgthree)"
UNMUTER = "Random Unmuter (rgthree)"
REPEATER = "Mute / Bypass Repeater (rgthree)"
RELAY = "Mute / Bypass Relay (rgthree)"

EFFICIENT_SAMPLERS = ("KSampler (Efficient)", "KSampler Adv. (Efficient)", "KSampler SDXL (Eff.)")
_ROLLED: Mapping[str, str] = {
    **dict.fromkeys(EFFICIENT_SAMPLERS, "noise_seed"),
    "KSampler (Efficient)": "seed",
    "Noise Control Script": "seed",
    "HighRes-Fix Script": "seed",
    "Tiled Upscaler Script": "seed",
}
"""Nodes of efficiency-nodes-comfyui 4579b7d for which a seed of -1 means a new one each time."""

HIGHEST_SEED = 2**50


def roll(node: UiNode, inputs: dict[str, Any], seed: int | None, place: str) -> None:
    """Replace a seed that stands for a new one each time; edits `inputs`.

    `Seed (rgthree)` has -1, -2 and -3 for it (the last two mean the seed before, plus or minus 1,
    which a new page does not know); without `seed` it stays, for its class draws one itself.
    """
    if node.type == SEED:
        if seed is not None and inputs.get("seed") in (-1, -2, -3):
            low = max(0, _whole(node.properties.get("randomMin"), 0))
            high = max(low, _whole(node.properties.get("randomMax"), HIGHEST_SEED))
            inputs["seed"] = low + Dice(seed, place).below(high - low + 1)
        return
    name = _ROLLED.get(node.type)
    if name is not None and inputs.get(name) == -1:
        inputs[name] = Dice(seed or 0, place).below(HIGHEST_SEED + 1)


def _whole(value: Any, otherwise: int) -> int:
    return value if value.__class__ is int else otherwise


def unmute(networks: Sequence[Network], grouped: Grouped, seed: int) -> Iterator[str]:
    """Switch one muted input of each `Random Unmuter (rgthree)` on, and say which.

    Nothing happens unless all its inputs are muted. A `Mute / Bypass Repeater` hands its new mode
    to its own inputs, or to its group where it has none; an instance to all nodes inside
    (rgthree-comfy 13b4399 `random_unmuter.ts`, `node_mode_repeater.ts`).
    """
    for network in networks:
        for unmuter in [n for n in network.nodes.values() if n.node.type == UNMUTER]:
            inputs = _inputs(network, unmuter)
            if inputs and all(node.node.mode == NEVER for node in inputs):
                chosen = inputs[Dice(seed, f"unmute {unmuter.node.id}").below(len(inputs))]
                _switch_on(network, chosen, grouped)
                yield (
                    f"Node {unmuter.node.id} ({unmuter.node.type}) chose node {chosen.node.id}"
                    f" ({chosen.node.title or chosen.node.type}) of {len(inputs)}."
                )


def _inputs(network: Network, node: NetNode) -> list[NetNode]:
    """What a node is connected to, with the inputs of reroutes and collectors in their place."""
    found: dict[str, NetNode] = {}
    waiting = [node]
    seen = {node.node.id}
    while waiting:
        links = [network.links.get(link_id) for link_id in waiting.pop(0).links.values()]
        for origin in (network.nodes.get(link.origin) for link in links if link is not None):
            if origin is None or origin.node.id in seen:
                continue
            seen.add(origin.node.id)
            if any(w in origin.node.type for w in ("Reroute", "Node Combiner", "Node Collector")):
                waiting.append(origin)
            else:
                found[origin.node.id] = origin
    return list(found.values())


def _switch_on(network: Network, node: NetNode, grouped: Grouped) -> None:
    waiting = [(network, node)]
    seen: set[int] = set()
    while waiting:
        place, node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        node.node = node.node._replace(mode=0)
        if node.network is not None:
            waiting += [(node.network, inner) for inner in node.network.nodes.values()]
        elif node.node.type == REPEATER:
            linked = [n for n in _inputs(place, node) if n.node.type != RELAY]
            around = grouped.around(place, node.node.id) if not linked else ()
            waiting += [(place, n) for n in (*linked, *(place.nodes[key] for key in around))]
