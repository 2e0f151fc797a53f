"""The inputs that a model of a workflow may have: each under a name, the sensible ones marked."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from comfy_runner.convert.editor import Conversion
from comfy_runner.graph.check import needed
from comfy_runner.graph.inputs import Exposed, Settable, discover
from comfy_runner.graph.nodes import NodeCatalog
from comfy_runner.publishing.naming import LONGEST, free, identifier
from comfy_runner.publishing.roles import SAMPLING, SIZES, Place, Role, Roles

MOST = 16
"""How many inputs a model has unless its author says more; what comes later is left out."""

LONGEST_TEXT = 2000
"""Characters of the longest text, but for prompts, that a model has an input for by itself."""

VAGUE = re.compile(r"(value|choice|switch|text|string|input|int|float|boolean|mode)(_\d+)?|")
"""Labels that say less of an input than its node's title does."""

PROMPT_WORDS = frozenset({"prompt", "text", "string", "user", "input", "positive", "multiline"})
"""Words of which a label is made that says no more than that it is the prompt."""

PLAIN_GOALS = frozenset({"", "image", "images", "input", "pixels", "video", "audio", "source"})
"""Inputs that say nothing of a file that goes to them but what it is."""

GROUPED = (Role.PROMPT, Role.NEGATIVE, Role.SIZE, Role.SAMPLING)
"""Roles in which inputs of one kind that have one value are meant to be the same."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One input that a model may have."""

    name: str
    """An identifier, different from those of all others."""
    targets: tuple[Place, ...]
    """Node id and input of every place that its value goes to; the first tells type and range."""
    settable: Settable
    """The first of them."""
    role: Role
    is_default: bool
    """Whether a model has it unless its author chooses."""
    prefix: str = ""
    """An identifier that tells it from others of its kind, from a title; may be empty."""
    has_mask: bool = False
    """Whether the transparency of a picture is used, too: as a mask."""
    is_beyond: bool = False
    """Whether a model would have it by default, but for `MOST`."""

    @property
    def address(self) -> str:
        """`NODE_ID.INPUT` of the first target, which stands for all of them."""
        return ".".join(self.targets[0])

    @property
    def value(self) -> Any:
        """What the workflow itself has there."""
        return self.settable.value


def candidates(conversion: Conversion, catalog: NodeCatalog) -> tuple[Candidate, ...]:
    """Everything that can be set: first what a model has by default, in the order of its inputs.

    The default choice is that of the workflow's app, where there is one. Else it is the prompts,
    the files, what the author gave a title or a place on the front of a subgraph, the sizes and
    lengths of what is made, and steps, guidance and a denoise below 1; never a seed, for which
    there is one input in common, never a model, never how a file is saved.
    """
    finder = _Finder(conversion, catalog)
    drafts = _alone([*finder.shown(), *finder.plain()])
    drafts.sort(key=lambda draft: (not draft.is_default, 0 if finder.app else draft.role))
    taken: set[str] = set()
    made = []
    for number, draft in enumerate(drafts):
        name = free(draft.name, draft.prefix, taken)
        taken.add(name)
        kept = draft.is_default and (finder.app or number < MOST)
        made.append(
            replace(
                draft,
                name=name,
                is_default=kept,
                has_mask=finder.has_mask(draft),
                is_beyond=draft.is_default and not kept,
            )
        )
    return tuple(made)


def remarks(found: Sequence[Candidate]) -> Iterator[str]:
    """What an author should know of the default choice, one sentence or two each."""
    if beyond := [each.name for each in found if each.is_beyond]:
        yield (
            f"The workflow shows more than the {MOST} inputs that a model has by default. Choose"
            f" among all of them with --input; left out: {', '.join(beyond)}."
        )
    if found and not any(each.is_default for each in found):
        yield (
            "Nothing in the workflow suits as an input by itself. Choose with --input, such as"
            f" --input {found[0].name}={found[0].address}."
        )


def running(conversion: Conversion, catalog: NodeCatalog) -> frozenset[str]:
    """Ids of the nodes that run: those that the conversion's outputs need, or all outputs."""
    workflow, outputs = conversion.workflow, frozenset(conversion.outputs)
    return workflow.upstream(outputs) if outputs else needed(workflow, catalog)


class _Finder:
    def __init__(self, conversion: Conversion, catalog: NodeCatalog) -> None:
        workflow = conversion.workflow
        self.app = bool(conversion.exposed)
        self._conversion = conversion
        self._catalog = catalog
        self._roles = Roles(workflow, catalog)
        self._settables = {(one.node_id, one.input): one for one in discover(workflow, catalog)}
        self._running = running(conversion, catalog)
        self._told: set[Place] = set()

    def shown(self) -> Iterator[Candidate]:
        """What the author shows: in the app, or on the fronts of subgraphs."""
        for entry in self._conversion.exposed:
            yield from self._shown([entry], counts=True)
        groups: dict[Any, list[Exposed]] = {}
        for entry in self._conversion.promoted:
            one = self._settables.get(entry.targets[0])
            if one is not None:
                alone = entry.targets if self._roles.of(one) is Role.FILE else ()
                label = identifier(_label(entry))
                if one.value == "":
                    alone = entry.targets
                told = (label, self._own_title(one), one.class_type, one.input)
                key = (*told, repr(one.value), alone)
                groups.setdefault(key, []).append(entry)
        for entries in groups.values():
            yield from self._shown(entries, counts=not self.app)

    def plain(self) -> Iterator[Candidate]:
        """Everything else."""
        groups: dict[Any, list[Settable]] = {}
        for place, one in self._settables.items():
            if place not in self._told:
                role = self._roles.of(one)
                if role is Role.OTHER and self._roles.holds_value(one) and self._own_title(one):
                    role = Role.OWN
                alike = role in GROUPED and one.value != ""
                same = (one.class_type, one.input, repr(one.value)) if alike else place
                groups.setdefault((role, same), []).append(one)
        for (role, _), members in groups.items():
            one = members[0]
            hidden = bool(self._conversion.promoted) and ":" in one.node_id
            counts = not self.app and not hidden and one.node_id in self._running
            yield Candidate(
                self._name(self._plain_label(one, role), one, role),
                tuple((each.node_id, each.input) for each in members),
                one,
                role,
                counts and role <= Role.SAMPLING and _is_filled(one, role),
                self._own_title(one),
            )

    def has_mask(self, draft: Candidate) -> bool:
        """Whether a node that runs gets the mask that comes with a file."""
        loaders = {node_id for node_id, _ in draft.targets} if draft.role is Role.FILE else ()
        return any(user in self._running for one in loaders for user in self._roles.masked(one))

    def _shown(self, entries: list[Exposed], *, counts: bool) -> Iterator[Candidate]:
        """One candidate for what several fronts show alike."""
        targets = tuple(
            target
            for entry in entries
            for target in entry.targets
            if target in self._settables and target not in self._told
        )
        if not targets:
            return
        self._told.update(targets)
        one, label = self._settables[targets[0]], _label(entries[0])
        role, name = self._roles.of(one), identifier(label)
        if role is Role.OTHER:
            kinds = {**dict.fromkeys(SIZES, Role.SIZE), **dict.fromkeys(SAMPLING, Role.SAMPLING)}
            role = kinds.get(name, Role.OWN)
        front = entries[0].name.removesuffix(label)
        if role is Role.FILE:
            front = re.sub(r"^(load|upload) ", "", front, flags=re.IGNORECASE)
        never = role > Role.OTHER and not (self.app and role is Role.MODEL)
        runs = any(node_id in self._running for node_id, _ in targets)
        prefix = identifier(front) if front[:1].isalpha() else ""
        name = self._name(label, one, role)
        if prefix and VAGUE.fullmatch(name) and len(prefix) + len(name) < LONGEST:
            name = f"{prefix}_{name}"
        yield Candidate(
            name,
            targets,
            one,
            role,
            counts and runs and not never,
            prefix,
        )

    def _own_title(self, one: Settable) -> str:
        """The author's title of its node, as an identifier; empty where the node has none."""
        known = self._catalog.get(one.class_type)
        usual = known.title if known else one.class_type
        if one.title in (one.class_type, usual):
            return ""
        return identifier(one.title.removeprefix(usual) or one.title)

    def _plain_label(self, one: Settable, role: Role) -> str:
        own = one.input.rpartition(".")[2]
        if self._roles.holds_value(one):
            return self._own_title(one) or self._roles.meaning(one)
        if role is Role.FILE:
            goal = self._roles.consumer(one.node_id)
            return self._own_title(one) or (own if goal.casefold() in PLAIN_GOALS else goal)
        return own

    def _name(self, label: str, one: Settable, role: Role) -> str:
        name = identifier(label)
        if role in (Role.PROMPT, Role.NEGATIVE) and "negative" in name:
            return "negative_prompt"
        if role in (Role.PROMPT, Role.NEGATIVE) and set(name.split("_")) <= PROMPT_WORDS | {""}:
            return "prompt" if role is Role.PROMPT else "negative_prompt"
        if role is Role.FILE:
            name = re.sub(r"^(load|upload|input)_(?=.)", "", name)
            kind = one.kind if one.kind != "file" else identifier(one.input)
            return kind if name in ("", "file", "input", "value", "optional") else name
        if VAGUE.fullmatch(name):
            return self._own_title(one) or name or identifier(one.input)
        return name


def _alone(drafts: Sequence[Candidate]) -> list[Candidate]:
    """The same with no number for a file that is the only one: `image` for `image_1`."""
    files = [each.name for each in drafts if each.role is Role.FILE and each.is_default]
    stems = {name: re.sub(r"_?\d+$", "", name) for name in files}
    return [
        replace(each, name=stems[each.name])
        if each.role is Role.FILE and len(files) == 1 and stems.get(each.name) in PLAIN_GOALS
        else each
        for each in drafts
    ]


def _label(entry: Exposed) -> str:
    """What the author calls it, without the node that tells it from others of that label."""
    return entry.name.rpartition(".")[2] or entry.name


def _is_filled(one: Settable, role: Role) -> bool:
    """Whether the workflow has something there that a person would write.

    An empty prompt or file is one that is not used, and a very long text was made by a program.
    """
    if role is Role.OWN and isinstance(one.value, str):
        return len(one.value) <= LONGEST_TEXT
    return bool(one.value) or role not in (Role.FILE, Role.PROMPT)
