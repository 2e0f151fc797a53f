"""What a training packs: weights by their addresses, an upload and a workflow, in one tar."""

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from comfy_runner.config import Config
from comfy_runner.documents import source as documents
from comfy_runner.errors import InvalidInput, Problem
from comfy_runner.fetch.archives import MAX_NAME_BYTES, find_weights, promised, unpack
from comfy_runner.fetch.endings import SAFETENSORS, WEIGHTS
from comfy_runner.fetch.judge import judge
from comfy_runner.fetch.policy import Policy
from comfy_runner.fetch.unpacking import MAX_DEPTH
from comfy_runner.runs.files import GivenFile
from comfy_runner.serving import uploads
from comfy_runner.serving.prediction import Narrator, credentials, printable
from comfy_runner.serving.training_asked import UPLOAD, Asked, asked
from comfy_runner.serving.training_tar import MODELS, Packed, packed, write_tar
from comfy_runner.weights.bringing.installing import UNPACKED_FILES, storing
from comfy_runner.weights.hosts.addresses import shown
from comfy_runner.weights.kept.files import discard
from comfy_runner.weights.kept.space import free_bytes
from comfy_runner.weights.progress import Steps
from comfy_runner.weights.store import Addressed, WeightStore
from comfy_runner.weights.weight import Weight

KEPT = 3600.0
"""Seconds that a tar stays, so that Cog can send it; older ones go when the next one is packed."""
HEAD = 512
ZIP, TAR, GZIP = b"PK\x03\x04", b"ustar", b"\x1f\x8b"
TAR_MAGIC = 257
"""Where a tar's magic bytes stand."""


def package(
    weights: str,
    *,
    upload: object = None,
    workflow: str = "",
    config: Config,
    **tokens: Any,
) -> Path:
    """Pack weights, and a workflow that uses them, into one tar for `trained.install`.

    `weights` says what: see `asked`. `upload` is a file as Cog hands it over. `workflow` is JSON,
    or a URL or data URI as `documents.source` reads it; empty for none. `tokens` are `cog.Secret`s
    (see `prediction.TOKEN_HOSTS`). Everything is fetched and judged as for a run. The tar is
    Cog's to send; it goes when another one is packed later.

    Raises: `InvalidInput` and other kinds of `CallerError`; `DownloadFailed`; `MachineError`.
    """
    known = credentials(tokens)
    store = WeightStore(config)
    wanted = asked(weights, config, has_upload=upload is not None)
    document = _workflow(workflow, config)
    folder = config.home / "training"
    _forget_old(folder)
    with ExitStack() as stack:
        names = _brought(wanted, store, known, stack)
        files = []
        sent: Mapping[str, GivenFile] = {}
        for one in wanted:
            if one.what is None:
                # Once: Cog removes only what came last.
                sent = sent or uploads.received(
                    {UPLOAD: upload}, timeout=config.fetch_timeout, config=config
                )
                files.append(_sent(one, sent[UPLOAD], folder, config, stack))
            else:
                files.append(_fetched(one, names, store))
        _check_names(files)
        path = write_tar(folder, files, document, reserve=config.disk_reserve)
    told = ", ".join(file.weight.label for file in files)
    print(printable(f"Packed {told} into {path.name}."), flush=True)
    return path


def _workflow(text: str, config: Config) -> Mapping[str, Any] | None:
    if not text.strip():
        return None
    return documents.read(
        text.strip(),
        max_bytes=config.max_input_bytes,
        field="workflow",
        policy=Policy.of(config),
    )


def _brought(
    wanted: tuple[Asked, ...],
    store: WeightStore,
    known: Mapping[str, str],
    stack: ExitStack,
) -> Mapping[Addressed, str]:
    """Have everything in the model folders, pinned; the names of what came by its address."""
    fetching = store.ensure(
        [one.what for one in wanted if isinstance(one.what, Weight)],
        [one.what for one in wanted if isinstance(one.what, Addressed)],
        credentials=known,
        pins=stack,
    )
    narrator = Narrator(_no_metric)
    steps = Steps(fetching)
    with closing(fetching):
        for update in steps:
            narrator.tell(update)
    for note in steps.result.notes:
        print(printable(note), flush=True)
    return steps.result.names


def _fetched(one: Asked, names: Mapping[Addressed, str], store: WeightStore) -> Packed:
    """The file of a weight that stands in its model folder."""
    if isinstance(one.what, Weight):
        weight = one.what
        path = store.folders.find(weight, one.folder) or store.models / weight.label
        known = store.objects.named(one.folder, weight.name)
        told = None if known is None else known.id
        sha256 = judge(
            path,
            name=weight.name,
            size=weight.size,
            sha256=weight.sha256,
            known_sha256=told,
            shown=weight.label,
        )
        return packed(weight, path, sha256)
    if one.what is None:
        raise TypeError("An upload is not fetched.")
    made = names[one.what]
    kept = store.objects.named(one.folder, made)
    if kept is None:
        what = f"{one.folder}/{made} has vanished from the model store. Ask again."
        raise InvalidInput([Problem("no_weight", what)])
    # Its name ends in a part of its hash, since callers' files must not be mistaken for others.
    own = re.sub(r"^.*/|-[0-9a-f]{12}(?=\.[^.]+$)", "", made)
    name = _named(one.name, own)
    note = f"From {shown(one.what.address)}."
    return packed(_weight(one.folder, name, note), kept.path, kept.id)


def _sent(one: Asked, file: GivenFile, folder: Path, config: Config, stack: ExitStack) -> Packed:
    """The uploaded file, or the one model file in an uploaded archive."""
    path, told = file.path, f"the uploaded file {file.name}"
    # A PyTorch checkpoint is a zip, too.
    if PurePosixPath(one.name).suffix.lower() in SAFETENSORS and _is_archive(file):
        with storing(told):
            folder.mkdir(parents=True, exist_ok=True)
            inside = Path(stack.enter_context(TemporaryDirectory(dir=folder)))
            room = max(0, free_bytes(folder) - config.disk_reserve)
            paths = unpack(path, inside, max_bytes=room, max_files=UNPACKED_FILES, shown=told)
        path = find_weights(paths, inside, shown=told)
    sha256 = judge(path, name=one.name, size=None, sha256=one.sha256, shown=told)
    return packed(_weight(one.folder, one.name, "Uploaded."), path, sha256)


def _is_archive(file: GivenFile) -> bool:
    if promised(file.name):
        return True
    with file.path.open("rb") as raw:
        head = raw.read(HEAD)
    return head.startswith((ZIP, GZIP)) or head[TAR_MAGIC:].startswith(TAR)


def _weight(folder: str, name: str, note: str) -> Weight:
    return Weight(name=name, folders=(folder,), urls=(), note=note)


def _named(asked_name: str, own: str) -> str:
    """What a file is to be called that is called `own` where it comes from.

    Raises: `InvalidInput` where the two have endings of different kinds.
    """
    kind, given = PurePosixPath(own).suffix, PurePosixPath(asked_name).suffix.lower()
    if not asked_name:
        return own
    if given not in WEIGHTS:
        return f"{asked_name}{kind}"
    if given != kind.lower() and not {given, kind.lower()} <= SAFETENSORS:
        raise _bad(
            f"{asked_name} is asked for, and the file is called {own}.", f"End it in {kind}."
        )
    return asked_name


def _check_names(files: Sequence[Packed]) -> None:
    """Raises: `InvalidInput` for names that two files would have, or that do not go into a tar."""
    labels = [f"{folder}/{each.weight.name}" for each in files for folder in each.weight.folders]
    twice = sorted(label for label, count in Counter(labels).items() if count > 1)
    if twice:
        hint = "Give each a name of its own: FOLDER/NAME = ADDRESS."
        raise _bad(f"Two files would be called {', '.join(twice)}.", hint)
    for label in labels:
        parts = PurePosixPath(MODELS, label).parts
        longest = max(len(part.encode()) for part in parts)
        if longest > MAX_NAME_BYTES or len(parts) > MAX_DEPTH:
            what = f"{label} is too long: {MAX_NAME_BYTES} bytes a name and {MAX_DEPTH} folders"
            raise _bad(f"{what} are taken.", "Give it a shorter name.")
        for inside in (other for other in labels if other.startswith(f"{label}/")):
            hint = "Give one of them another name."
            raise _bad(f"{label} cannot be a file and the folder of {inside}.", hint)


def _forget_old(folder: Path) -> None:
    """Remove tars that Cog has sent long since, and what killed trainings have left."""
    now = time.time()
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            with suppress(OSError):  # another training may do the same
                if now - path.stat().st_mtime > KEPT:
                    discard(path)


def _no_metric(_: str, __: Any) -> None:
    """A training is a function, which Cog gives nothing to record metrics with."""


def _bad(what: str, hint: str) -> InvalidInput:
    return InvalidInput([Problem("bad_weight", what, hint, input="weights")])
