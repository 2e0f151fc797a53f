"""Trained weights given to `setup`: a tar by its path or address, verified and put in place."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import unquote, urlsplit

from comfy_runner.config import Config
from comfy_runner.errors import DownloadFailed, InvalidInput, Problem
from comfy_runner.fetch.archives import unpack
from comfy_runner.fetch.download import Patience
from comfy_runner.fetch.probe import Unreachable, probe
from comfy_runner.fetch.urls import redacted, scheme
from comfy_runner.serving.prediction import TOKEN_HOSTS, Narrator, printable, tokens_in
from comfy_runner.serving.training_tar import LORAS, read_tar
from comfy_runner.weights.bringing.installing import UNPACKED, UNPACKED_FILES, storing
from comfy_runner.weights.hosts.addresses import Data, canonical, parse, shown
from comfy_runner.weights.hosts.locate import Hosts, locate
from comfy_runner.weights.kept.objects import ObjectStore
from comfy_runner.weights.manifests.document import content, write
from comfy_runner.weights.progress import Steps
from comfy_runner.weights.store import WeightStore
from comfy_runner.weights.weight import Source, Weight

FOLDER = "trained"
"""Model folder, unknown to ComfyUI, where a tar stands until it is unpacked."""
ALL_TOKEN_HOSTS = {**TOKEN_HOSTS, "replicate_api_token": "replicate.com"}
"""Variable, in small letters, to the one host that its token is sent to."""


@dataclass(frozen=True, slots=True)
class Installed:
    """Trained weights that are in place."""

    names: tuple[str, ...]
    """The model files, as `folder/name`."""
    workflow: Mapping[str, Any] | None
    """The document that came with them."""
    pins: ExitStack = field(repr=False, compare=False)
    """Keeps them from being evicted until it is closed, or the process ends."""


def install(source: str, config: Config, environment: Mapping[str, str] = os.environ) -> Installed:
    """Put the weights in a tar into the content store and the model folders; tell how it goes.

    `source` is a path or an address, as Cog hands COG_WEIGHTS over: of a tar that `training` made,
    or of a trained model's tar with one safetensors file, which becomes `loras/` and its own name.
    Each file is verified before the first one gets its name. What the same tar has brought before
    is used again, as the host's version or the file's time tells; so it is when the host does not
    answer. `environment` has the tokens of hosts. To be called before ComfyUI starts.

    Raises: `InvalidInput` for a source that cannot be used and for files that must not be loaded;
    `HashMismatch`, `BadArchive` and other kinds of `DownloadFailed`.
    """
    store = WeightStore(config, environment)
    tokens = tokens_in(environment, {name.upper(): host for name, host in ALL_TOKEN_HOSTS.items()})
    with ExitStack() as pins:
        job = _Installing(_find(source, config, tokens, store), config, store, tokens, pins)
        held = job.run()
        names = [f"{folder}/{weight.name}" for weight in held.weights for folder in weight.folders]
        print(printable(f"Trained weights: {', '.join(names) or 'none'}."), flush=True)
        return Installed(tuple(names), held.workflow, pins.pop_all())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tar:
    """Where a tar is, and what tells it from another one at the same place."""

    source: str = field(repr=False)
    shown: str
    identity: str
    version: str
    """Empty where nothing tells."""
    size: int | None = None
    path: Path | None = None
    """The file, where it is one of this machine."""
    answers: bool = True
    """Whether its host does."""
    why: str = ""
    """Why it does not."""


@dataclass(frozen=True, slots=True)
class _Held:
    """What a tar brings."""

    weights: tuple[Weight, ...]
    """Each with its size and hash."""
    workflow: Mapping[str, Any] | None


def _find(source: str, config: Config, tokens: Mapping[str, str], store: WeightStore) -> _Tar:
    source = source.strip()
    try:
        path = Path(unquote(urlsplit(source).path)) if scheme(source) == "file" else Path(source)
        if scheme(source) in ("", "file") and path.exists():
            return _local(path)
    except (OSError, ValueError):  # a name that is too long, or no URL
        pass
    hosts = Hosts.of(config)
    address = None
    if scheme(source) != "file":
        address = parse(source, hf_endpoint=hosts.hf)
    if address is None:
        hint = "Give the path or the address of a tar of trained weights."
        raise _bad("no_weights", f"There is no file {redacted(source)}.", hint)
    if isinstance(address, Data):
        return _Tar(source=source, shown="data:", identity=canonical(address), version="data")
    known = hosts.tokens(tokens)
    before = store.objects.recall(_identity(canonical(address)))
    patience = Patience() if before is None else Patience(retries=1)
    asked: dict[str, Any] = {"cancelled": Event(), "patience": patience}
    # OWNER/MODEL:VERSION has no scheme, and a manifest would take it for a path.
    url = source if scheme(source) else canonical(address)
    found = _Tar(source=url, shown=shown(address), identity=canonical(address), version="")
    try:
        place = locate(address, hosts=hosts, credentials=known, folder=LORAS, **asked)
        remote = probe(place.url, credentials={**known, **place.credentials}, **asked)
    except Unreachable as err:
        return replace(found, answers=False, why=str(err))
    # A size alone tells nothing: two trainings of one shape have the same.
    version = remote.version if remote.version != str(remote.size) else ""
    return replace(found, shown=place.shown, version=version, size=remote.size)


def _local(path: Path) -> _Tar:
    if not path.is_file():
        what = f"{path} is a {'folder' if path.is_dir() else 'device or pipe'}, no tar."
        raise _bad("no_weights", what, "Give a tar of trained weights.")
    status = path.stat()
    version = f"{status.st_ino} {status.st_size} {status.st_mtime_ns}"
    identity = f"file\n{path.resolve()}"
    return _Tar(
        source=str(path),
        shown=str(path),
        identity=identity,
        version=version,
        size=status.st_size,
        path=path,
    )


class _Installing:
    def __init__(
        self,
        tar: _Tar,
        config: Config,
        store: WeightStore,
        tokens: Mapping[str, str],
        pins: ExitStack,
    ) -> None:
        self._tar = tar
        self._config = config
        self._store = store
        self._objects: ObjectStore = store.objects
        self._tokens = tokens
        self._pins = pins
        self._identity = _identity(tar.identity)
        key = f"{self._identity}\n{tar.version or uuid.uuid4().hex}"
        self._key = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()

    def run(self) -> _Held:
        """Have everything in place and pinned."""
        with self._objects.locked(self._key, Event()):
            held = self._recalled()
            if held is None and not self._tar.answers:
                raise Unreachable(self._tar.why)
            if held is None:
                with self._fetched() as path:
                    held = self._kept(path)
            for weight in held.weights:
                self._name(weight)
        return held

    def _recalled(self) -> _Held | None:
        """What the same tar has brought before, if all of it is still there; it is pinned then."""
        known = self._objects.recall(self._identity)
        if known is None:
            return None
        if self._tar.answers and not known.version == self._tar.version != "":
            return None
        self._pin(known.object_id)
        kept = self._objects.get(known.object_id)
        if kept is None:
            return None
        held = _of_record(kept.path)
        for weight in held.weights:
            self._pin(weight.sha256)
        ids = [weight.sha256 or "" for weight in held.weights]
        if any(self._objects.get(identity) is None for identity in ids):
            return None
        if not self._tar.answers:
            told = f"{self._tar.shown} does not answer; what was fetched before is used."
            print(printable(told), flush=True)
        self._objects.touch([kept.id, *ids])
        return held

    @contextmanager
    def _fetched(self) -> Iterator[Path]:
        """The tar as a file; one that had to be fetched is gone afterwards."""
        if self._tar.path is not None:
            yield self._tar.path
            return
        name = f"{self._key}.tar"
        source = Source(self._tar.source)
        wanted = Weight(name=name, folders=(FOLDER,), urls=(source,), size=self._tar.size)
        narrator = Narrator(_no_metric)
        try:
            with ExitStack() as pins:
                fetching = self._store.ensure([wanted], credentials=self._tokens, pins=pins)
                with closing(fetching):
                    for update in Steps(fetching):
                        narrator.tell(replace(update, name=self._tar.shown))
                yield self._store.models / FOLDER / name
        finally:
            with suppress(InvalidInput):  # it did not come, or somebody else has removed it
                self._objects.remove(f"{FOLDER}/{name}")

    def _kept(self, tar: Path) -> _Held:
        """Everything in a tar, verified, pinned and taken into the store."""
        objects, place = self._objects, self._tar.shown
        folder = objects.scratch(self._key)
        objects.make_room(tar.stat().st_size)
        try:
            with storing(place):
                shutil.rmtree(folder, ignore_errors=True)
                paths = unpack(
                    tar, folder, max_bytes=UNPACKED, max_files=UNPACKED_FILES, shown=place
                )
                found = read_tar(folder, paths, self._config, shown=place)
                held = _Held(found.weights, found.workflow)
                for weight in held.weights:
                    self._pin(weight.sha256)
                    file = found.files[weight.label]
                    objects.add_file(file, weight.sha256 or "", size=file.stat().st_size)
                self._remember(held, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return held

    def _remember(self, held: _Held, folder: Path) -> None:
        """Note what the tar has brought, for the next start."""
        record = {"manifest": json.loads(write(held.weights)), "workflow": held.workflow}
        text = json.dumps(record).encode()
        identity = hashlib.sha256(text).hexdigest()
        file = folder / "record"
        file.write_bytes(text)
        self._pin(identity)
        kept = self._objects.add_file(file, identity, size=len(text))
        self._objects.remember(
            self._identity,
            self._tar.version,
            kept,
            file_name="record.json",
            private=True,  # nobody else is given anything for it
            immutable=False,
            shown=self._tar.shown if self._tar.path is None else "",
        )

    def _name(self, weight: Weight) -> None:
        kept = self._objects.get(weight.sha256 or "")
        if kept is None:
            raise DownloadFailed(f"{weight.label} vanished from the model store. Start again.")
        for folder in weight.folders:
            self._objects.link(kept, folder, weight.name)

    def _pin(self, identity: str | None) -> None:
        self._pins.enter_context(self._objects.pin([identity or ""]))


def _identity(place: str) -> str:
    """What the store remembers a tar by, apart from what else it keeps from that place."""
    return f"trained\n{place}"


def _of_record(path: Path) -> _Held:
    record = json.loads(path.read_bytes())
    return _Held(content(record["manifest"]).weights, record["workflow"])


def _no_metric(_: str, __: Any) -> None:
    """In `setup` there is no prediction that could have one."""


def _bad(code: str, what: str, hint: str) -> InvalidInput:
    return InvalidInput([Problem(code, what, hint, input="weights")])
