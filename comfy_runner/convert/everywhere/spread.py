"""Adds the links: gives each open input what fits it best."""

from collections.abc import Iterator, Sequence

from comfy_runner.convert.everywhere import marks
from comfy_runner.convert.everywhere.rules import Broadcast, Rules, Target
from comfy_runner.convert.everywhere.sources import Source, past_bypassed
from comfy_runner.convert.layout import Grouped
from comfy_runner.convert.network import NetNode, Network
from comfy_runner.convert.resolve import input_slots
from comfy_runner.convert.ui import INPUT_NODE, OUTPUT_NODE, UiDocument, UiLink, identifier
from comfy_runner.errors import InvalidWorkflow, Problem


def connect(networks: Sequence[Network], document: UiDocument, grouped: Grouped) -> list[str]:
    """Add the links to the networks; returns a note for each input that matched too often.

    Each graph is a world of its own. Only what is not connected gets a link. Ends of links that the
    pack had added when the file was saved, and of which the file has only the end, are removed.

    Raises: `InvalidWorkflow` with every pattern that cannot be read.
    """
    saved = document.extra.get("links_added_by_ue")
    stale = {identifier(entry) for entry in saved} if isinstance(saved, list) else set()
    problems: list[Problem] = []
    notes: list[str] = []
    for network in networks:
        senders = [node for node in network.nodes.values() if marks.is_sender(node)]
        if senders or stale:
            _drop_stale(network, None if senders else stale)
        live = [node for node in senders if not node.is_off]
        if live:
            rules = Rules(network, networks[-1], grouped)
            notes += _Spreading(network, live).run(rules)
            problems += rules.problems
    if problems:
        raise InvalidWorkflow(problems)
    return notes


def _drop_stale(network: Network, stale: set[str | None] | None) -> None:
    """Forget connections without a link: those that are `stale`, or all of them."""
    for node in network.nodes.values():
        for name, link_id in list(node.links.items()):
            if link_id not in network.links and (stale is None or link_id in stale):
                del node.links[name]


class _Spreading:
    """The senders of one graph and what they reach."""

    def __init__(self, network: Network, senders: Sequence[NetNode]) -> None:
        self._network = network
        self._senders = senders
        self._is_old = all(marks.is_old(node) for node in senders)

    def run(self, rules: Rules) -> Iterator[str]:
        broadcasts: dict[str, list[Broadcast]] = {}
        for sender in self._senders:
            for broadcast in rules.broadcasts(sender):
                if self._is_live(broadcast.source):
                    broadcasts.setdefault(broadcast.source.type, []).append(broadcast)
        wide = [b for found in broadcasts.values() for b in found if b.to_any or b.to_combo]
        chosen: list[tuple[Target, Source]] = []
        for target in (*self._open_inputs(), *self._open_outputs()):
            candidates = [*broadcasts.get(target.type, ())]
            candidates += (b for b in wide if b.source.type != target.type)
            matches = [broadcast for broadcast in candidates if broadcast.matches(target)]
            top = max((match.priority for match in matches), default=0.0)
            best = [match for match in matches if match.priority == top]
            if len(best) == 1:
                chosen.append((target, best[0].source))
            elif best:
                yield _ambiguous(target, best)
        for target, source in chosen:
            self._link(target, source)

    def _link(self, target: Target, source: Source) -> None:
        if target.node is None:
            link = UiLink(source.origin, source.slot, OUTPUT_NODE, target.place, source.type)
            self._network.links[f"added:{len(self._network.links)}"] = link
            return
        node = target.node
        link = UiLink(source.origin, source.slot, node.node.id, target.place, source.type)
        self._network.connect(link, node, target.name)
        # Some classes take their inputs in the order in which they come.
        order = [name for name, _ in input_slots(self._network, node) if name in node.links]
        node.links = {name: node.links[name] for name in dict.fromkeys((*order, *node.links))}

    def _is_live(self, source: Source) -> bool:
        if source.origin == INPUT_NODE:
            return True
        origin = self._network.nodes.get(source.origin)
        return origin is not None and not origin.is_off

    def _open_inputs(self) -> Iterator[Target]:
        for node in self._network.nodes.values():
            if not marks.is_plain(node) or node.node.properties.get("rejects_ue_links"):
                continue
            if self._is_old and node.is_off:
                continue
            raw = {str(entry.get("name", "")): entry for entry in marks.raw_slots(node, "inputs")}
            title = node.node.title or (node.shape.title if node.shape else node.node.type)
            for place, (name, kind) in enumerate(input_slots(self._network, node)):
                entry = raw.get(name, {})
                is_widget = name in node.held or (node.shape is None and bool(entry.get("widget")))
                if not self._is_linked(node, name) and _is_open(node, name, is_widget, name in raw):
                    label = marks.text_of(entry, "label") or name
                    told = "" if self._is_old else marks.text_of(entry, "localized_name")
                    shown = marks.text_of(entry, "label") or told or name
                    yield Target(node, name, kind, shown, label, title, place)

    def _open_outputs(self) -> Iterator[Target]:
        """The outputs of a definition that nothing inside is connected to."""
        links = self._network.links
        given = {link.target_slot for link in links.values() if link.target == OUTPUT_NODE}
        for place, port in enumerate(self._network.outputs):
            if place not in given and not any(key in links for key in port.link_ids):
                shown = port.label or port.name
                yield Target(None, port.name, port.type, shown, shown, "", place)

    def _is_linked(self, node: NetNode, name: str) -> bool:
        link = self._network.links.get(node.links.get(name, ""))
        if link is not None and self._is_old:
            link = past_bypassed(self._network, link)
        return link is not None


def _is_open(node: NetNode, name: str, is_widget: bool, is_listed: bool) -> bool:
    """Whether the author lets an input get links: most sockets, and few widgets."""
    ue = marks.settings(node)
    if not is_widget:
        closed = ue.get("input_ue_unconnectable")
        return not (isinstance(closed, dict) and closed.get(name))
    opened = ue.get("widget_ue_connectable")
    if not isinstance(opened, dict):
        opened = node.node.properties.get("widget_ue_connectable")
    # Before 2025 a widget had a slot only when its author had made it an input.
    return bool(opened.get(name)) if isinstance(opened, dict) else is_listed


def _ambiguous(target: Target, best: Sequence[Broadcast]) -> str:
    senders = [broadcast.sender.node for broadcast in best]
    names = ", ".join(dict.fromkeys(f"{node.id} ({node.title or node.type})" for node in senders))
    if target.node is None:
        return f"Output {target.name} of a subgraph is left open: nodes {names} fit it equally."
    node = target.node.node
    return (
        f"Input {target.name} of node {node.id} ({node.title or node.type}) is left open: nodes"
        f" {names} fit it equally."
    )
