"""Looks for weights: the first source of each that answers, unless the store has it already."""

import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from comfy_runner.errors import CallerError, DownloadFailed, HashMismatch
from comfy_runner.fetch.archives import promised
from comfy_runner.fetch.download import Patience
from comfy_runner.fetch.lines import Lines
from comfy_runner.fetch.policy import OPEN
from comfy_runner.fetch.probe import Unreachable, probe
from comfy_runner.fetch.transfer import Remote
from comfy_runner.fetch.urls import scheme
from comfy_runner.weights.bringing.keeping import Keeping
from comfy_runner.weights.bringing.made_names import ending
from comfy_runner.weights.bringing.tasks import (
    Addressed,
    File,
    Lead,
    Means,
    Task,
    raise_lost,
    raise_refused,
)
from comfy_runner.weights.hosts.addresses import Address, member_url, shown
from comfy_runner.weights.hosts.locate import locate, locate_source, wrong_folder
from comfy_runner.weights.hosts.places import Place
from comfy_runner.weights.kept.objects import Origin
from comfy_runner.weights.weight import Source, Weight

log = logging.getLogger(__name__)

AT_ONCE = 8
"""Hosts that are asked at once."""


class Looking:
    """Finds where the weights of one job come from."""

    def __init__(self, means: Means, keeping: Keeping) -> None:
        self._means = means
        self._keeping = keeping
        patience = means.patience
        self._lines = {
            policy: Lines(means.stop, connect=patience.connect, stall=patience.stall, policy=policy)
            for policy in (OPEN, means.policy)
        }

    def close(self) -> None:
        """End the connections to the hosts."""
        for lines in self._lines.values():
            lines.close()

    def find_all(self, tasks: Sequence[Task]) -> list[Lead]:
        """The next usable source of each task; what the store can serve has its names then.

        Raises: `DownloadFailed` with every failure; `InvalidInput` or `Refused` with every problem;
        `Cancelled`.
        """
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="looking") as pool:
            futures = [pool.submit(self._find, task) for task in tasks]
        refusals: list[CallerError] = []
        leads: list[Lead] = []
        for future in futures:
            try:
                lead = future.result()
            except CallerError as err:
                refusals.append(err)
            else:
                leads += [lead] if lead is not None else []
        raise_refused(refusals)
        raise_lost(tasks)
        return leads

    def probe(self, file: File, place: Place, patience: Patience) -> Remote:
        """What the host tells of a file at a place. Raises: see `fetch.probe.probe`."""
        return probe(
            place.url,
            credentials={**self._means.credentials, **place.credentials},
            cancelled=self._means.stop,
            patience=patience,
            lines=self._lines[file.policy],
        )

    def _find(self, task: Task) -> Lead | None:
        """The next source that answers; None when the store serves the task, or nothing is left."""
        if self.is_known(task):
            return None
        while not task.is_out:
            self._means.check_stop()
            source = task.sources[task.tried]
            task.tried += 1
            try:
                return self._follow(task, source)
            except DownloadFailed as err:
                task.fail(err)
            except CallerError as err:
                task.refuse(err)
        return None

    def _follow(self, task: Task, source: Source | Address) -> Lead | None:
        """Where a source leads, where that must be fetched; None when the store serves the task.

        Raises: as `_lead` and `_is_needed`.
        """
        try:
            lead = self._lead(task, source)
        except Unreachable:
            # Its host says which file is meant; what it said last time has to do.
            if isinstance(source, Source) or not self._use_unasked(
                task, self._asked_before(task), shown(source)
            ):
                raise
            return None
        return lead if self._is_needed(lead) else None

    def is_known(self, task: Task) -> bool:
        """Whether the store serves a task without asking anybody anything."""
        wanted, keeping = task.wanted, self._keeping
        if isinstance(wanted, Addressed):
            known = self._asked_before(task)
            return self._is_fresh(known) and self._use(task, known)
        # The manifest is its owner's word; a caller's hash does not give him another's file.
        if task.sha256 and keeping.use(task, task.sha256, wanted.name):
            return True
        plain = [source.sha256 for source in wanted.urls if source.sha256 and not source.extract]
        return bool(plain) and keeping.use(task, plain[0].lower(), wanted.name)

    # Where a source leads

    def _lead(self, task: Task, source: Source | Address) -> Lead:
        """What a source leads to, as far as it is known without asking for the files."""
        wanted = task.wanted
        if isinstance(wanted, Addressed):
            if isinstance(source, Source):
                raise TypeError("An addressed weight has no sources.")
            return Lead(task=task, files=[self._addressed_file(task, wanted, source)])
        if not isinstance(source, Source):
            raise TypeError("A weight of the manifest has no addresses.")
        if wanted.kind == "file" or source.extract:
            return Lead(task=task, files=[self._manifest_file(task, wanted, source)])
        if not wanted.files:
            raise DownloadFailed(
                f"{task.label} is a folder, and the manifest says neither which files it has nor"
                " that its source is an archive. Add files or extract to its entry."
            )
        files = []
        for member in wanted.files:
            url = member_url(source.url, member.path, self._means.hosts.hf)
            own = replace(source, url=url, size=member.size, sha256=member.sha256)
            find = partial(self._locate_source, own)
            files.append(
                File(
                    label=f"{task.label}/{member.path}",
                    place=find(),
                    locate=find,
                    path=member.path,
                    size=member.size,
                    sha256=member.sha256,
                )
            )
        return Lead(task=task, files=files)

    def _addressed_file(self, task: Task, wanted: Addressed, address: Address) -> File:
        find = partial(self._locate, address, wanted.folder, self._means.patience)
        known = self._asked_before(task)
        place = self._locate(address, wanted.folder, self._patience(known))
        if odd := wrong_folder(place.folder, wanted.folder):
            self._keeping.note(f"{place.shown}: {odd}")
        file = File(
            label=task.label,
            place=place,
            locate=find,
            size=place.size,
            sha256=place.sha256,
            policy=self._means.policy,
        )
        if not place.extract:
            # What the caller expects is the weight itself, not the archive that it comes in.
            _expect(file, None, task.sha256, "Correct the hash, or give another address.")
        return file

    def _manifest_file(self, task: Task, wanted: Weight, source: Source) -> File:
        find = partial(self._locate_source, source)
        place = find()
        file = File(
            label=task.label, place=place, locate=find, size=place.size, sha256=place.sha256
        )
        if not source.extract:
            _expect(file, wanted.size, task.sha256, "Correct the manifest.")
        return file

    def _locate(self, address: Address, folder: str, patience: Patience) -> Place:
        asking = self._asking(replace(patience, policy=self._means.policy))
        place = locate(address, folder=folder, **asking)
        if scheme(place.url) == "data" and not place.extract:
            return replace(place, extract=_archive_type(place.url))
        return place

    def _locate_source(self, source: Source) -> Place:
        asking = self._asking(replace(self._means.patience, policy=OPEN))
        return locate_source(source, environment=self._means.environment, **asking)

    def _asking(self, patience: Patience) -> dict[str, Any]:
        means = self._means
        return {
            "hosts": means.hosts,
            "credentials": means.credentials,
            "cancelled": means.stop,
            "patience": patience,
        }

    # Whether it must be fetched

    def _is_needed(self, lead: Lead) -> bool:
        """Whether a lead must be followed; what the store has gets its names instead.

        Raises: `DownloadFailed` for a host that does not give a file; `InvalidInput`.
        """
        keeping, task = self._keeping, lead.task
        known = keeping.recall(lead)
        if known is not None and self._is_fresh(known) and self._use(task, known):
            keeping.remember_page(lead, known)
            return False
        try:
            self._look(lead, self._patience(known))
        except Unreachable:
            if not self._use_unasked(task, known, lead.place.shown):
                raise
            return False
        return not self.is_kept(lead)

    def is_kept(self, lead: Lead) -> bool:
        """Whether the store has what the hosts have been seen to give; it is used then."""
        keeping = self._keeping
        known = keeping.recall(lead)
        if lead.remote is None:
            return self._is_fresh(known) and self._use(lead.task, known)
        if known is not None and known.version == lead.version != "":
            return self._take(lead, known.object_id, known.file_name)
        sha256 = keeping.has_by_hash(lead)
        return sha256 is not None and self._take(lead, sha256, lead.file_name)

    def _is_fresh(self, known: Origin | None) -> bool:
        return known is not None and self._keeping.is_fresh(known)

    def _asked_before(self, task: Task) -> Origin | None:
        """What is remembered of an address that had to be looked up at its host."""
        wanted = task.wanted
        return self._keeping.recall_address(wanted) if isinstance(wanted, Addressed) else None

    def _patience(self, known: Origin | None) -> Patience:
        """With a host: little where the store can serve without it."""
        patience = self._means.patience
        return patience if known is None else replace(patience, retries=min(patience.retries, 1))

    def _use_unasked(self, task: Task, known: Origin | None, place: str) -> bool:
        """Whether what a host gave before serves a task, though it does not answer now."""
        if known is None or known.private or not self._use(task, known):
            return False
        self._keeping.note(f"{place} does not answer; what was fetched before is used.")
        return True

    def _use(self, task: Task, known: Origin | None) -> bool:
        return known is not None and self._keeping.use(task, known.object_id, known.file_name)

    def _take(self, lead: Lead, identity: str, name: str) -> bool:
        keeping = self._keeping
        if not keeping.use(lead.task, identity, name):
            return False
        found = self._means.objects.get(identity)
        if found is not None and lead.remote is not None:
            keeping.remember(lead, found, name)
        return True

    def _look(self, lead: Lead, patience: Patience) -> None:
        """Ask the hosts of a lead, and see that what they have can be what is wanted."""
        look = partial(self._look_at, lead.task, patience=patience)
        if len(lead.files) == 1:
            look(lead.files[0])
            return
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="looking") as pool:
            list(pool.map(look, lead.files))

    def _look_at(self, task: Task, file: File, *, patience: Patience) -> None:
        place = file.place
        if scheme(place.url) not in ("http", "https"):
            return
        remote = file.remote = self.probe(file, place, patience)
        cure = "Correct the manifest."
        if isinstance(task.wanted, Addressed):
            cure = "Correct the hash, or give another address."
            if not place.extract:
                kind = promised(remote.name)
                if kind:
                    file.place = replace(place, extract=kind)
                    file.size, file.sha256 = place.size, place.sha256
                else:
                    name = place.name or remote.name
                    ending(name, allow_pickles=self._means.allow_pickles, shown=place.shown)
        _compare(file, remote.size, remote.sha256, cure)


def _expect(file: File, size: int | None, sha256: str | None, cure: str) -> None:
    """Add what somebody expects of a file. Raises: `HashMismatch` where its host says otherwise."""
    found = file.size, file.sha256
    file.size = size or file.size
    file.sha256 = sha256 or file.sha256
    _compare(file, *found, cure)


def _compare(file: File, size: int | None, sha256: str | None, cure: str) -> None:
    """Raises: `HashMismatch` where what was found is not what is expected of the file."""
    what = f"{file.place.shown} is not the file that was asked for: it"
    if None not in (file.size, size) and file.size != size:
        raise HashMismatch(f"{what} has {size} bytes where {file.size} were expected. {cure}")
    if file.sha256 and sha256 and file.sha256.lower() != sha256.lower():
        raise HashMismatch(f"{what}s sha256 is {sha256}, expected was {file.sha256}. {cure}")


def _archive_type(url: str) -> Literal["", "tar", "zip"]:
    """The kind of archive that a `data:` URL says to be."""
    found = re.match(r"data:application/(x-)?(tar|gzip|x?zip)\b", url[:100].lower())
    if found is None:
        return ""
    return "zip" if found[2] == "zip" else "tar"
