"""What a model of one workflow takes and gives: its inputs under good names, and its outputs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["str", "int", "float", "bool", "Path"]
"""Python type of an input, as `predict.py` annotates it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Param:
    """One input of the model, besides those that every model has."""

    name: str
    """A Python identifier in lower case, different from all others and from the common inputs."""
    targets: tuple[str, ...]
    """Addresses `NODE_ID.INPUT` of every place that its value goes to."""
    kind: Kind
    description: str
    default: Any = None
    """What the workflow itself has there; None where `blank` or `required`."""
    required: bool = False
    """Whether a caller has to give it: a file that the workflow brings none for."""
    blank: bool = False
    """Whether it may be left out, which leaves what the workflow itself has: for a file that is
    there already, for a text that no literal of Cog's can hold, and for a value that no caller
    could give, such as one that is off its grid."""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] | None = None
    choices_from: str = ""
    """Where `choices` come from anew whenever the schema is written: `folder:NAME` for what is in a
    model folder, `group:NAME` for the weights of a manifest's group; empty where they are fixed."""
    accept: str = ""
    """For a file: what a browser's dialogue offers, such as `image/*`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """Everything that distinguishes the `predict.py` of one workflow from another's."""

    params: tuple[Param, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Address `NODE_ID.INPUT` to the value that the author set for good."""
    outputs: tuple[str, ...] = ()
    """Ids of the nodes whose results are returned; empty for all."""
    seed: bool = False
    """Whether the workflow has a seed, so that there is an input `seed`, blank for random."""
    pictures: bool = False
    """Whether results may be pictures, so that there are `output_format` and `output_quality`."""
    tokens: tuple[str, ...] = ()
    """Which of `hf_token` and `civitai_token` are inputs: where weights need them."""
    notes: tuple[str, ...] = ()
    """What the author should know, one sentence each."""
