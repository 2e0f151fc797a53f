"""To whom a sender sends: the rules of version 7, and of version 6 for what that saved."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from comfy_runner.convert.everywhere import marks, patterns
from comfy_runner.convert.everywhere.marks import PROMPTS, SEED
from comfy_runner.convert.everywhere.patterns import Pattern
from comfy_runner.convert.everywhere.sources import Source, sources
from comfy_runner.convert.layout import Grouped
from comfy_runner.convert.network import NetNode, Network
from comfy_runner.convert.ui import OUTPUT_NODE
from comfy_runner.errors import Problem

OLD_SLOTS: Mapping[str, int] = {"Anything Everywhere3": 3, PROMPTS: 2}
"""How many inputs an old sender sent; 1 for any other."""

OLD_PRIORITY: Mapping[str, int] = {
    "Anything Everywhere?": 10,
    SEED: 5,
    PROMPTS: 5,
    "Anything Everywhere": 2,
}
"""0 for any other."""

OLD_PATTERNS: Mapping[str, tuple[str, ...]] = {
    PROMPTS: (r"(_|\b)pos(itive|_|\b)|^prompt|正面", r"(_|\b)neg(ative|_|\b)|负面"),
    SEED: ("seed|随机种",),
}
"""What the names of inputs must match, for each input of an old sender."""


class Target(NamedTuple):
    """An input that is not connected; of the definition itself when there is no node."""

    node: NetNode | None
    name: str
    type: str
    shown: str
    """What a pattern for inputs is held against."""
    label: str
    """What names of repeated types are held against."""
    title: str
    place: int


class Broadcast(NamedTuple):
    """One source with its rules."""

    source: Source
    sender: NetNode
    title: Pattern | None
    input: Pattern | None
    reach: frozenset[str] | None
    """Ids of the nodes that may get it; `None` for all."""
    priority: float
    repeated: float | None = None
    """How the name must fit where the sender sends a type twice (`repeated_type_rule`)."""
    label: Pattern | None = None
    """The source's own name as a pattern, for one of those rules."""
    to_combo: bool = False
    to_any: bool = False

    def matches(self, target: Target) -> bool:
        """Whether the target may get it."""
        node_id = OUTPUT_NODE if target.node is None else target.node.node.id
        return (
            self._type_fits(target.type)
            and self.source.origin != node_id
            and (self.reach is None or node_id in self.reach)
            and (self.title is None or self.title.passes(target.title))
            and (self.input is None or self.input.passes(target.shown))
            and self._name_fits(target)
        )

    def _type_fits(self, kind: str) -> bool:
        return (
            kind == self.source.type
            or (self.to_combo and kind == "COMBO" and self.source.type == "STRING")
            or (self.to_any and kind == "*")
        )

    def _name_fits(self, target: Target) -> bool:
        own, other = self.source.name, target.label
        shorter = min(len(own), len(other))
        match self.repeated:
            case 0:
                return own == other
            case 1:
                return own[:shorter] == other[:shorter]
            case 2:
                return own[len(own) - shorter :] == other[len(other) - shorter :]
            case 3:
                return own == target.title
            case 4:
                return self.label is not None and self.label.passes(other)
            case _:
                return True


class Rules:
    """The rules of all senders of one graph."""

    def __init__(self, network: Network, root: Network, grouped: Grouped) -> None:
        self._network = network
        self._root = root
        self._grouped = grouped
        self.problems: dict[Problem, None] = {}
        """A problem for each pattern so far that cannot be read, in order."""

    def broadcasts(self, sender: NetNode) -> Iterator[Broadcast]:
        """Everything that one sender sends."""
        yield from self._old(sender) if marks.is_old(sender) else self._new(sender)

    def _new(self, sender: NetNode) -> Iterator[Broadcast]:
        ue = marks.settings(sender)
        found = list(sources(self._network, sender))
        counts = Counter(source.type for source in found)
        repeats = any(count > 1 for count in counts.values())
        title, wanted = self._pattern(sender, "title"), self._pattern(sender, "input")
        if wanted is None and marks.file_type(sender) == SEED:
            wanted = self._compiled(sender, "seed")
        reach = self._reach(sender, self._pattern(sender, "group"), ue)
        priority = _number(ue.get("priority")) or _priority(sender, ue, repeats)
        for source in found:
            is_named = counts[source.type] > 1 or bool(ue.get("apply_to_unrepeated"))
            rule = _number(ue.get("repeated_type_rule")) if is_named else None
            yield Broadcast(
                source,
                sender,
                title,
                wanted,
                reach,
                priority,
                rule,
                self._compiled(sender, source.name) if rule == 4 else None,  # noqa: PLR2004
                _number(ue.get("string_to_combo")) > 0,
                _number(ue.get("send_to_any")) > 0,
            )

    def _old(self, sender: NetNode) -> Iterator[Broadcast]:
        """What a sender of version 6 sends: fewer inputs, fixed patterns, other priorities."""
        properties = sender.node.properties
        kind = marks.file_type(sender)
        title, wanted, group = None, None, None
        if kind == "Anything Everywhere?":
            title, wanted, group = (self._old_pattern(sender, number) for number in range(3))
        reach = self._reach(sender, group, properties)
        in_group, in_color = properties.get("group_restricted"), properties.get("color_restricted")
        priority = OLD_PRIORITY.get(kind, 0) + _number(properties.get("priority_boost"))
        priority += 0.1 * bool(in_group) + 0.3 * bool(in_color)
        wants = OLD_PATTERNS.get(kind, ())
        for source in sources(self._network, sender):
            if source.place < OLD_SLOTS.get(kind, 1):
                if wants:
                    wanted = self._compiled(sender, wants[source.place])
                yield Broadcast(source, sender, title, wanted, reach, priority)

    def _old_pattern(self, sender: NetNode, number: int) -> Pattern | None:
        """One of the three patterns; where it is an input, the text of the node it comes from."""
        name = ("title_regex", "input_regex", "group_regex")[number]
        link = self._network.links.get(sender.links.get(name, ""))
        if link is not None:
            origin = self._network.nodes.get(link.origin)
            match origin and origin.node.values:
                case [str() as text, *_]:
                    pass
                case _:
                    return patterns.NEVER_PASSES
        else:
            stored = sender.node.values
            listed = stored if isinstance(stored, list) else []
            text = listed[number] if number < len(listed) else ".*"
        if not isinstance(text, str) or text in ("", ".*"):
            return None
        if text.startswith("+"):  # meant for nodes that are no longer there
            return patterns.NEVER_PASSES
        return self._compiled(sender, text)

    def _reach(
        self, sender: NetNode, group: Pattern | None, rules: Mapping[str, Any]
    ) -> frozenset[str] | None:
        """Ids of the nodes that the sender's restrictions leave; `None` when it has none."""
        in_group, in_color = rules.get("group_restricted"), rules.get("color_restricted")
        if in_group not in (1, 2) and in_color not in (1, 2) and group is None:
            return None
        nodes = self._network.nodes
        reach = frozenset(nodes)
        if in_group in (1, 2):
            around = self._grouped.around(self._network, sender.node.id)
            reach = around if in_group == 1 else reach - around
        if in_color in (1, 2):
            own = sender.node.raw.get("color")
            same = frozenset(key for key, n in nodes.items() if n.node.raw.get("color") == own)
            reach = reach & same if in_color == 1 else reach - same
        if group is not None:  # The pack looks at the groups of the root in every graph.
            named = [ids for title, ids in self._grouped.of(self._root) if group.passes(title)]
            reach &= frozenset().union(*named)
        return reach

    def _pattern(self, sender: NetNode, name: str) -> Pattern | None:
        ue = marks.settings(sender)
        text = ue.get(f"{name}_regex")
        if not isinstance(text, str) or text in ("", ".*"):
            return None
        pattern = self._compiled(sender, text)
        return pattern._replace(inverted=bool(ue.get(f"{name}_regex_invert")))

    def _compiled(self, sender: NetNode, text: str) -> Pattern:
        """A JavaScript pattern; one that cannot be read becomes a problem."""
        pattern = patterns.read(text)
        if pattern is None:
            shown = repr(text[: patterns.LONGEST])
            what = f"The pattern {shown}, which says where it sends to, is not read."
            hint = "Write a simpler pattern, or connect the inputs that it sends to yourself."
            problem = sender.node.problem("", "unreadable_pattern", what, hint)
            self.problems[problem] = None
        return pattern or patterns.NEVER_PASSES


def _priority(sender: NetNode, ue: Mapping[str, Any], repeats: bool) -> float:
    texts = [ue.get(f"{n}_regex") for n in ("title", "input", "prompt", "negative", "group")]
    is_picky = any(text and (text != ".*" or marks.is_plain(sender)) for text in texts)
    return (
        10
        + 10 * (sender.node.type == PROMPTS)
        + 20 * (is_picky or repeats or marks.file_type(sender) == SEED)
        + 3 * (_number(ue.get("group_restricted")) > 0)
        + 6 * (_number(ue.get("color_restricted")) > 0)
    )


def _number(value: Any) -> float:
    """A number, or a switch as 0 or 1; anything else is 0."""
    try:
        return float(value) if isinstance(value, int | float) else 0.0
    except OverflowError:
        return 0.0
