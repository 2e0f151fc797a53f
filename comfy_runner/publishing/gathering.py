"""What a project must bring along for its workflow: weights, packs of nodes, files."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from comfy_runner.config import Config
from comfy_runner.convert.editor import Conversion
from comfy_runner.errors import CallerError
from comfy_runner.fetch.urls import scheme
from comfy_runner.graph.nodes import NodeCatalog
from comfy_runner.packs.folder import PackFolder
from comfy_runner.packs.lock import LocalSource, PackLock
from comfy_runner.packs.lookup import uses, why
from comfy_runner.publishing.interface import Interface
from comfy_runner.runs.plan import Plan, node_policy, prepare
from comfy_runner.weights.manifest import Manifest
from comfy_runner.weights.manifests.document import Content
from comfy_runner.weights.manifests.importing import Imported, from_workflows
from comfy_runner.weights.manifests.merging import merge
from comfy_runner.weights.store import WeightStore
from comfy_runner.weights.weight import Weight

MODEL_CODES = frozenset({"unknown_model", "bad_model_name", "ambiguous_model", "hash_contradicts"})
"""Problems that a model on this machine's disk may settle."""
TOKENS = {"huggingface.co": ("hf", "hf_token"), "civitai.com": ("civitai", "civitai_token")}
"""Host to the kind of token that it wants and the input that takes it."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a workflow needs besides ComfyUI."""

    needed: tuple[Weight, ...]
    local: tuple[str, ...]
    """Models that are on this machine and that no manifest knows, as `folder/name`."""
    tokens: tuple[str, ...]
    """Which tokens the weights want, as names of inputs."""
    notes: tuple[str, ...]


def known_weights(project: Content, others: Content) -> Content:
    """What a project's manifest says, completed with the entries and hashes of another."""
    return merge(project, Imported(others.weights, others.groups)).content


def gather(
    document: Mapping[str, Any],
    interface: Interface,
    *,
    catalog: NodeCatalog,
    known: Content,
    config: Config,
    present: Collection[str],
) -> Gathered:
    """The weights that the workflow needs as its model runs it, wherever they are now.

    `present` are the names of files that come with the project.

    Raises: `CallerError` with everything for which the model could not run.
    """
    manifest = Manifest(known.weights, known.groups)
    store = WeightStore(config)
    given = {t: f"{p.name}.file" for p in interface.params if p.required for t in p.targets}

    def plan(on_disk: Any) -> Plan:
        return prepare(
            document,
            catalog=catalog,
            manifest=manifest,
            on_disk=on_disk,
            values={**interface.fixed, **given},
            files={*present, *given.values()},
            outputs=interface.outputs,
            policy=node_policy(config),
        )

    try:  # as on a machine that has nothing yet
        made = plan(lambda _folder, _shape: ())
    except CallerError as err:
        if not {problem.code for problem in err.problems} & MODEL_CODES:
            raise
        made = plan(store.listing)
    by_label = {f"{folder}/{w.name}": w for w in known.weights for folder in w.folders}
    needed = {weight.label: weight for weight in made.weights}
    needed |= {label: by_label[label] for label in made.present if label in by_label}
    local = [label for label in made.present if label not in by_label]
    notes = [
        f"The model {label} is on this machine, and in no manifest: its project cannot fetch it."
        " Give it an entry in weights_manifest.json, or put the file where the model runs."
        for label in local
    ]
    named = {(w.folders[0], w.name): w for w in from_workflows({"workflow": document}).weights}
    for asked in made.asked:
        weight = named.get((asked.folder, asked.reference.name))
        if weight is not None and asked.text != asked.reference.name:
            needed.setdefault(weight.label, weight)
    weights = tuple(needed.values())
    return Gathered(weights, tuple(local), tuple(_tokens(weights)), tuple(notes))


def own_manifest(
    known: Content, gathered: Gathered, project: Content, written: Collection[str], groups: set[str]
) -> Content:
    """The project's manifest: what is needed, the named groups, and what its author added.

    `project` is what it says now, and `written` the entries in it that the last `new` wrote.
    """
    by_label = {weight.label: weight for weight in known.weights}
    labels = {weight.label: by_label.get(weight.label, weight) for weight in gathered.needed}
    mine = [w.label for w in project.weights if w.label not in written]
    members = {name: known.groups[name] for name in groups | project.groups.keys()}
    places = {f"{folder}/{w.name}": w for w in known.weights for folder in w.folders}
    for label in [*mine, *(member for group in members.values() for member in group)]:
        labels.setdefault(places[label].label, places[label])
    return Content(tuple(labels.values()), members, project.bases)


def own_files(manifest: Content, roots: Sequence[Path]) -> dict[str, Path]:
    """The files that entries name relative to their manifest, from the first root that has each.

    The licences that lie beside them come along.
    """
    found: dict[str, Path] = {}
    for place in (place for weight in manifest.weights for place in weight.urls):
        for root in roots:
            if not scheme(place.url) and (root / place.url).is_file():
                beside = (root / place.url).parent.glob("LICENSE*")
                for path in ((root / place.url), *sorted(beside)):
                    found.setdefault(path.relative_to(root).as_posix(), path)
    return found


def gather_packs(
    document: Mapping[str, Any],
    conversion: Conversion,
    *,
    builtin: NodeCatalog,
    folder: PackFolder,
    project: PackLock,
) -> tuple[PackLock, dict[str, Path], list[str]]:
    """The packs that the workflow's nodes come from: the project's lock, the files of local ones by
    their path in the project, and notes on packs that are in no lock.

    `folder` is where the packs of this machine are; entries of `project` stay.
    """
    running = {node.class_type for node in conversion.workflow.nodes.values()}
    needed = PackLock()
    notes: list[str] = []
    own = folder.read()
    for use in uses(document, builtin):
        if use.class_type not in running or project.with_class(use.class_type):
            continue
        answer = why(use, own, builtin)
        needed = needed.having(*answer.locked)
        if not answer.builtin and not answer.locked:
            cure = f" Add it: {answer.commands[0]}." if answer.commands else ""
            notes.append(f"The pack of the node class {use.class_type} is in no lock.{cure}")
    files: dict[str, Path] = {}
    for pack in needed.packs:
        if isinstance(pack.source, LocalSource):
            source = folder.source_of(pack)
            needed = needed.having(replace(pack, source=LocalSource(pack.name)))
            files |= {f"custom_nodes/{pack.name}/{path}": source / path for path in _tree(source)}
    return needed.having(*project.packs), files, notes


def _tree(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not {".git", "__pycache__"} & {*parts}:
            yield "/".join(parts)


def _tokens(weights: Sequence[Weight]) -> Iterator[str]:
    for host, (auth, name) in TOKENS.items():
        from_host = [w for w in weights if w.origin == host or w.origin.endswith(f".{host}")]
        if any(w.gated or any(s.auth == auth for s in w.urls) for w in from_host):
            yield name
