"""What each settable input of a workflow is for: prompt, file, size, sampling, or another end."""

from collections.abc import Iterator
from enum import IntEnum, auto

from comfy_runner.graph.declaring import narrowed
from comfy_runner.graph.inputs import Settable
from comfy_runner.graph.nodes import InputSpec, NodeCatalog
from comfy_runner.graph.workflow import Link, Node, Workflow

type Place = tuple[str, str]
"""A node's id and one of its inputs."""


class Role(IntEnum):
    """What an input is for, in the order in which a model lists its inputs."""

    PROMPT = auto()
    NEGATIVE = auto()
    FILE = auto()
    OWN = auto()
    """What the author gave a title, a label, or a place on a subgraph's front."""
    SIZE = auto()
    SAMPLING = auto()
    OTHER = auto()
    MODEL = auto()
    SEED = auto()
    MACHINE = auto()
    """How a model is loaded, and what a result's file is called."""
    STRUCTURE = auto()
    """What no text or number can be given for: a curve, boxes, and a choice of nothing, as that of
    `CustomCombo`, whose choices stand in other inputs."""


SIZES = frozenset(
    {"width", "height", "length", "frames", "num_frames", "frame_count", "batch_size", "duration"}
    | {"seconds", "aspect_ratio", "megapixels", "resolution", "size", "ratio", "duration_s"}
)
SAMPLING = frozenset({"steps", "cfg", "guidance", "cfg_scale", "guidance_scale"})
LOADING = frozenset({"weight_dtype", "device", "type", "dtype"})
"""How a model is loaded, which is the machine's affair."""
SAVING = frozenset({"filename_prefix", "filename", "subfolder", "foldername", "output_path"})

RESOLUTION_NODES = frozenset({"ResolutionSelector"})
"""Classes besides the makers of latents, and paid services, whose sizes are those of the result."""

TEXTS = frozenset({"COMFY_MATCHTYPE_V3", "*", "STRING", "CONDITIONING"})
"""Types of the links over which a prompt comes to a sampler."""

PLAIN = frozenset({"INT", "FLOAT", "BOOLEAN", "STRING", "COMBO", "COLOR", "COMFY_DYNAMICCOMBO_V3"})
"""Types whose values are a text, a number or a truth value."""

INSTRUCTIONS = ("system", "template", "regex")
"""Words in the names of texts that tell a language model, or a node, how to work."""

ZEROED = "ConditioningZeroOut"
"""The class after which no prompt counts."""


class Roles:
    """Tells the role of every input of one workflow."""

    def __init__(self, workflow: Workflow, catalog: NodeCatalog) -> None:
        self._workflow = workflow
        self._catalog = catalog
        self._consumers: dict[str, list[tuple[Place, int]]] = {}
        for node in workflow.nodes.values():
            for name, link in node.links():
                self._consumers.setdefault(link.node_id, []).append(((node.id, name), link.slot))
        self._positive = frozenset(self._prompted(negative=False))
        self._negative = frozenset(self._prompted(negative=True)) - self._positive

    def of(self, one: Settable) -> Role:
        """What the input is for."""
        spec = spec_of(self._workflow, self._catalog, (one.node_id, one.input))
        name = self.meaning(one)
        first = next(
            (
                role
                for role, is_it in (
                    (Role.FILE, spec.takes_file),
                    (Role.MODEL, spec.folder is not None),
                    (Role.SEED, spec.is_seed or name == "seed"),
                    (Role.MACHINE, name in SAVING | LOADING),
                    (Role.STRUCTURE, spec.type not in PLAIN or spec.choices == ()),
                    (Role.SIZE, name in SIZES and self._makes_size(one)),
                    (Role.SAMPLING, self._is_sampling(one, name)),
                )
                if is_it
            ),
            Role.OTHER,
        )
        is_text = first is Role.OTHER and spec.type == "STRING"
        return self._text_role(one, spec, name) if is_text else first

    def meaning(self, one: Settable) -> str:
        """The input's own name; of a node that only holds a value, that of the input it goes to.

        `value` where it goes to inputs of different names; `seed` for every name of a seed.
        """
        if not self.holds_value(one):
            return self._goal((one.node_id, one.input))
        places = self._consumers.get(one.node_id, ())
        goals = {self._goal(place).casefold() for place, _ in places}
        return goals.pop() if len(goals) == 1 else one.input

    def holds_value(self, one: Settable) -> bool:
        """Whether it is the value of a node that does nothing but hold one."""
        return one.class_type.startswith("Primitive") and one.input == "value"

    def consumer(self, node_id: str) -> str:
        """Name of the one input that a node's first output goes to; empty where several."""
        names = {
            name.rpartition(".")[2]
            for (_, name), slot in self._consumers.get(node_id, ())
            if slot == 0
        }
        return names.pop() if len(names) == 1 else ""

    def masked(self, node_id: str) -> Iterator[str]:
        """Ids of the nodes that use the mask of a loaded picture, which is its transparency."""
        outputs = self._outputs(self._workflow.nodes[node_id])
        for (consumer, _), slot in self._consumers.get(node_id, ()):
            if "IMAGE" in outputs and outputs[slot : slot + 1] == ("MASK",):
                yield consumer

    def is_service(self, class_type: str) -> bool:
        """Whether nodes of the class ask a paid service."""
        return bool(self._catalog.raw["object_info"].get(class_type, {}).get("api_node"))

    def _goal(self, place: Place) -> str:
        """What an input is called, without what it stands in; `seed` for every seed."""
        name = place[1].rpartition(".")[2]
        known = self._catalog.get(self._workflow.nodes[place[0]].class_type)
        spec = known.inputs(self._workflow.nodes[place[0]].inputs).get(place[1]) if known else None
        return "seed" if spec is not None and spec.is_seed else name

    def _makes_size(self, one: Settable) -> bool:
        known = self._catalog.get(one.class_type)
        return (
            self.holds_value(one)
            or one.class_type in RESOLUTION_NODES
            or self.is_service(one.class_type)
            or (known is not None and "LATENT" in known.outputs)
        )

    def _is_sampling(self, one: Settable, name: str) -> bool:
        if name == "denoise":
            return isinstance(one.value, float | int) and one.value < 1
        if name != "steps":
            return name in SAMPLING
        others = self._workflow.nodes[one.node_id].inputs
        first, last = others.get("start_at_step", 0), others.get("end_at_step", one.value)
        # Samplers that share their steps are set together or not at all.
        return first == 0 and isinstance(last, int | float) and last >= (one.value or 0)

    def _text_role(self, one: Settable, spec: InputSpec, name: str) -> Role:
        called = f"{name} {one.title}".casefold()
        if any(word in called for word in INSTRUCTIONS):
            return Role.OTHER
        if "negative" in called:
            return Role.NEGATIVE
        if not spec.options.get("multiline"):
            return Role.OTHER
        known = self._catalog.get(one.class_type)
        says = self.holds_value(one) or (known is not None and "CONDITIONING" in known.outputs)
        if says and one.node_id in self._negative:
            return Role.NEGATIVE
        if says and one.node_id in self._positive:
            return Role.PROMPT
        return Role.PROMPT if "prompt" in called or self.is_service(one.class_type) else Role.OTHER

    def _prompted(self, *, negative: bool) -> Iterator[str]:
        """Ids of the nodes whose texts come to a sampler as what is wanted, or not wanted."""
        waiting = [
            link.node_id
            for node in self._workflow.nodes.values()
            for name, link in node.links()
            if self._type(link) == "CONDITIONING"
            and "CONDITIONING" not in self._outputs(node)
            and name.startswith("neg") == negative
        ]
        seen: set[str] = set()
        while waiting:
            node = self._workflow.nodes.get(waiting.pop())
            if node is None or node.id in seen or node.class_type == ZEROED:
                continue
            seen.add(node.id)
            yield node.id
            for name, link in node.links():
                other = name.startswith("pos" if negative else "neg")
                if not other and self._type(link) in TEXTS:
                    waiting.append(link.node_id)

    def _type(self, link: Link) -> str:
        source = self._workflow.nodes.get(link.node_id)
        outputs = self._outputs(source) if source is not None else ()
        return outputs[link.slot] if link.slot < len(outputs) else "*"

    def _outputs(self, node: Node) -> tuple[str, ...]:
        known = self._catalog.get(node.class_type)
        return known.outputs if known is not None else ()


def spec_of(workflow: Workflow, catalog: NodeCatalog, place: Place) -> InputSpec:
    """What the catalog says of an input that is there to be set. Raises: `KeyError` for others."""
    node = workflow.nodes[place[0]]
    known = catalog.get(node.class_type)
    if known is None:
        raise KeyError(place)
    return narrowed(node, known.inputs(node.inputs))[place[1]]


def goals_of(workflow: Workflow, catalog: NodeCatalog, place: Place) -> list[InputSpec]:
    """The inputs of its type that the value of a node goes to which does nothing but hold it."""
    holder = workflow.nodes[place[0]]
    if not holder.class_type.startswith("Primitive") or place[1] != "value":
        return []
    spec = spec_of(workflow, catalog, place)
    found = []
    for node in workflow.nodes.values():
        known = catalog.get(node.class_type)
        specs = known.inputs(node.inputs) if known else {}
        found += [
            specs[name]
            for name, link in node.links()
            if link.node_id == holder.id and name in specs and specs[name].type == spec.type
        ]
    return found
