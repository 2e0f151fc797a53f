"""The names that choices are made of: what is in a model folder, or in a group of the manifest."""

from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.graph.nodes import did_you_mean
from comfy_runner.weights.listing import ModelFolders
from comfy_runner.weights.manifest import Manifest


def names(source: str, folders: ModelFolders, manifest: Manifest) -> tuple[str, ...]:
    """The names, as a loader takes them, that `folder:NAME` or `group:NAME` stands for, sorted.

    Empty for a folder with nothing in it. Raises: `InvalidInput` for another kind of source, and
    for a group that the manifest lacks.
    """
    kind, _, name = source.partition(":")
    match kind:
        case "folder":
            return tuple(sorted(folders.listing(name)))
        case "group" if name in manifest.groups:
            return tuple(sorted({each.partition("/")[2] for each in manifest.groups[name]}))
        case "group":
            what = f"The weights manifest has no group {name!r}."
            hint = did_you_mean(name, manifest.groups) or "Add it, or name a folder."
        case _:
            what = f"{source!r} names neither a model folder nor a group."
            hint = "Write folder:NAME or group:NAME."
    raise InvalidInput([Problem("bad_choices", what, hint, input=source)])
