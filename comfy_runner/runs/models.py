"""The models that a run needs: what is there, what is fetched first, and what nobody knows."""

from collections.abc import Collection
from dataclasses import replace

from comfy_runner.errors import Problem
from comfy_runner.graph.nodes import NodeCatalog
from comfy_runner.graph.workflow import Workflow
from comfy_runner.weights.manifest import (
    AskedWeight,
    Found,
    Hints,
    Listing,
    Manifest,
    Missing,
    OnDisk,
    Reference,
    vae_approx_names,
)
from comfy_runner.weights.references import find, put, stands_for
from comfy_runner.weights.weight import Weight

GUESSES = 20
"""For how many unknown models similar names are looked for, which takes a while each time."""

NOT_FOUND = frozenset({"unknown_model", "bad_model_name"})


class Models:
    """What becomes of every model that the nodes of a workflow name or imply."""

    def __init__(
        self,
        workflow: Workflow,
        catalog: NodeCatalog,
        manifest: Manifest,
        on_disk: Listing,
        *,
        hints: Hints,
        refused: Collection[tuple[str, str]] = (),
    ) -> None:
        """`refused` are node id and input of values that were found not to be among the choices,
        for which there is a problem already."""
        self.workflow = workflow
        """With the names that files have here; shows no secret of an address."""
        self.missing: dict[str, Weight] = {}
        """Weights to fetch, by folder and name."""
        self.present: dict[str, None] = {}
        """Models on disk, by folder and name."""
        self.asked: list[AskedWeight] = []
        self.settled: set[tuple[str, str]] = set()
        """Node id and input of names for which there is a file, or will be one."""
        self.notes: list[str] = []
        self.problems: list[Problem] = []
        self._manifest = manifest
        self._on_disk = on_disk
        self._hints = hints
        self._refused = refused
        folders = catalog.raw.get("folders", {})
        self._folders = [name for name, entry in folders.items() if entry["places"]]
        for reference in find(workflow, catalog):
            self._refer(reference)
        for node in workflow.nodes.values():
            for weight in manifest.implied(node.class_type, node.inputs):
                self._need(weight)

    def _refer(self, reference: Reference) -> None:
        """Find the model that one name means, and note what has to be done for it."""
        stands_for_others = self._stands_for_others(reference)
        outcome = self._manifest.resolve(
            reference,
            self._on_disk,
            hints=self._hints,
            folders=self._folders,
            suggest=reference.certain and not stands_for_others and len(self.problems) < GUESSES,
        )
        match outcome:
            case OnDisk(found, folder):
                self.present[f"{reference.folder or folder}/{found}"] = None
                self._rename(reference, found)
            case Found(weight):
                self._need(weight, reference)
                self._rename(reference, outcome.rewritten_to)
            case AskedWeight():
                self._ask(reference, outcome)
            case Missing(problem) if stands_for_others and problem.code in NOT_FOUND:
                return
            case Missing(problem):
                self._miss(reference, problem)
                return
        self.settled.add((reference.node_id, reference.input))

    def _stands_for_others(self, reference: Reference) -> bool:
        """Whether the name, if it is no file, means others, as VAELoader's `taef1` means two."""
        if reference.folder is None or reference.form != "path":
            return False
        class_type, name = reference.class_type, reference.name
        return self._manifest.stands_for_others(class_type, reference.input, name) or (
            class_type == "VAELoader" and name in vae_approx_names(self._on_disk("vae_approx"))
        )

    def _need(self, weight: Weight, reference: Reference | None = None) -> None:
        if all(self._is_there(weight, folder) for folder in weight.folders):
            self.present[weight.label] = None
            return
        known = self.missing.get(weight.label, weight)
        if None not in (known.sha256, weight.sha256) and known.sha256 != weight.sha256:
            what = (
                f"The workflow says that the model {weight.label!r} has the SHA256"
                f" {weight.sha256}, but in another node it has {known.sha256}."
            )
            hint = "Correct the hash that is wrong, or name another model."
            code = "hash_contradicts"
            problem = reference.problem(code, what, hint) if reference else Problem(code, what)
            self.problems.append(problem)
        self.missing[weight.label] = known if known.sha256 else weight

    def _is_there(self, weight: Weight, folder: str) -> bool:
        listed = self._on_disk(folder)
        if weight.kind == "dir" and weight.name not in listed:
            return any(file.startswith(f"{weight.name}/") for file in listed)
        return weight.name in listed

    def _rename(self, reference: Reference, name: str | None) -> None:
        if name is None or stands_for(reference, name):
            return
        self.workflow = put(self.workflow, reference, name)
        self.notes.append(
            f"{_at(reference)} names the model {reference.shown!r}, which is {name!r} here."
        )

    def _ask(self, reference: Reference, asked: AskedWeight) -> None:
        if asked.text == reference.name:
            # ComfyUI saves the graph into its pictures, and an address may hold a token.
            self.workflow = put(self.workflow, reference, asked.shown)
            asked = replace(asked, reference=replace(reference, name=asked.shown))
        else:
            self.notes.append(
                f"{_at(reference)} names the model {reference.shown!r}, which the weights manifest"
                f" does not have. It comes from {asked.shown}, as the workflow says, and gets a"
                " name of its own."
            )
        self.asked.append(asked)

    def _miss(self, reference: Reference, problem: Problem) -> None:
        """Note a model that cannot be found; it is a problem where the node fails without it."""
        if reference.form == "token" and problem.code in NOT_FOUND:
            self.notes.append(
                f"{_at(reference)} names the embedding {reference.shown!r}, which is neither on"
                " disk nor in the weights manifest. ComfyUI leaves it out."
            )
        elif reference.form != "token" and not reference.certain and problem.code in SOFT:
            self.notes.append(f"{_at(reference)}, input {reference.input}: {problem.what}")
        elif problem.code not in NOT_FOUND or reference.folder or not self._is_refused(reference):
            self.problems.append(problem)

    def _is_refused(self, reference: Reference) -> bool:
        return (reference.node_id, reference.input) in self._refused


SOFT = NOT_FOUND | {"ambiguous_model"}
"""What is no problem where it is not sure that a model is meant."""


def _at(reference: Reference) -> str:
    return f"Node {reference.node_id} ({reference.title})"
