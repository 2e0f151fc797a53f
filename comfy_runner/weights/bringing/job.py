"""Brings weights: each found on its hosts, fetched, judged, unpacked, kept, and given its names."""

import logging
import threading
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from comfy_runner.errors import CallerError, Cancelled, DownloadFailed
from comfy_runner.fetch import ranged
from comfy_runner.fetch.download import fetch
from comfy_runner.fetch.outside import Unfinished
from comfy_runner.fetch.policy import OPEN, Policy
from comfy_runner.fetch.transfer import Delivered, Engine, Outcome, Remote, Transfer
from comfy_runner.fetch.urls import scheme
from comfy_runner.weights.bringing.installing import Installing, discard, scratch, storing
from comfy_runner.weights.bringing.keeping import Keeping
from comfy_runner.weights.bringing.looking import Looking
from comfy_runner.weights.bringing.tasks import (
    Brought,
    File,
    Group,
    Lead,
    Means,
    Task,
    raise_lost,
    raise_refused,
)
from comfy_runner.weights.weight import Weight

log = logging.getLogger(__name__)


class Bringing:
    """One job: `run` once."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._lock = threading.Lock()
        self._lost = False
        """Whether a weight cannot be had, so that all the others are of no use now."""
        self._refusals: list[CallerError] = []
        self._released = False
        self._keeping = Keeping(means)
        self._looking = Looking(means, self._keeping)

    @property
    def brought(self) -> Brought:
        """What came of it so far."""
        return self._keeping.brought

    def run(self, tasks: Sequence[Task]) -> None:
        """Bring them all.

        Nothing is transferred before each weight has a place that answers. What has come stays,
        and what has come in part is gone on with another time.

        Raises: `DownloadFailed` with every failure; `InvalidInput` for addresses that do not hold,
        `Refused` for those that must not be asked; `Cancelled`.
        """
        remaining = list(tasks)
        with closing(self._looking):
            while remaining:
                try:
                    self._fetch(self._looking.find_all(remaining))
                except Cancelled:
                    if not self._lost and not self._refusals:
                        raise
                raise_refused(self._refusals)
                raise_lost(remaining)
                self._means.check_stop()
                remaining = [task for task in remaining if not task.name]

    def _fetch(self, leads: Sequence[Lead]) -> None:
        """Follow the leads; each file is fetched once, by one process, however many want it.

        Who waits for a lock holds no other one, so that no two processes wait for each other.
        """
        objects = self._means.objects
        groups = _grouped(leads)
        others: list[Group] = []
        with ExitStack() as locks:
            own: list[Group] = []
            for group in groups:
                taken = locks.enter_context(objects.try_locked(group.key))
                (own if taken else others).append(group)
            self._fetch_locked(own)
        for group in others:
            with objects.locked(group.key, self._means.stop):
                self._fetch_locked([group])

    def _fetch_locked(self, groups: Sequence[Group]) -> None:
        """Bring what others have not brought since it was looked for."""
        means = self._means
        for group in groups:
            group.leads = [lead for lead in group.leads if not self._is_there(lead)]
        missing = [group for group in groups if group.leads]
        if not missing:
            return
        means.check_stop()
        needed = sum(
            _needed(group, file, self._part(group, file), means.base)
            for group in missing
            for file in group.files
        )
        means.objects.make_room(needed, release=self._release)
        web: list[tuple[Group, File]] = []
        with Installing(means, self._keeping, fail=self._fail, refuse=self._refuse) as installing:
            for group in missing:
                for file in group.files:
                    means.meter.expect(file.label, _size(file, means.base))
                    if file.remote is None:
                        installing.submit(group, partial(self._copy, installing, group, file))
                    else:
                        web.append((group, file))
            if web:
                self._transfer(web, installing)

    def _is_there(self, lead: Lead) -> bool:
        """Whether somebody has brought it meanwhile; its task has its names then."""
        task, wanted = lead.task, lead.task.wanted
        if isinstance(wanted, Weight) and self._keeping.holds(wanted):
            task.name = wanted.name
            return True
        return self._looking.is_known(task) or self._looking.is_kept(lead)

    def _part(self, group: Group, file: File) -> Path:
        return group.part(self._means.objects, file)

    def _copy(self, installing: Installing, group: Group, file: File) -> None:
        """Bring a file of this machine, or the content of a `data:` URL."""
        means, part = self._means, self._part(group, file)
        with storing(file.label), scratch(part) as folder:
            discard(part)
            fetched = fetch(
                file.place.url,
                part,
                size=file.size,
                sha256=file.sha256,
                progress=lambda done, total: means.meter.report(file.label, done, total),
                base=means.base,
                allow_local=True,
                staging=folder,
                cancelled=means.stop,
                patience=means.patience,
            )
        installing.take(group, file, fetched.size, fetched.sha256)

    def _transfer(self, web: Sequence[tuple[Group, File]], installing: Installing) -> None:
        """Bring files over the network, by the engines that fit them; ours does the rest."""
        means = self._means
        waiting: list[Transfer] = []
        owners: dict[Path, tuple[Group, File]] = {}
        asked: dict[str, File] = {}
        for group, file in web:
            if file.remote is not None:
                asked[file.remote.url] = file
                part = self._part(group, file)
                owners[part] = (group, file)
                waiting.append(Transfer(key=file.label, remote=file.remote, part=part))
        again: list[Transfer] = []

        def done(transfer: Transfer, outcome: Outcome) -> None:
            group, file = owners[transfer.part]
            file.remote = transfer.remote  # it may have changed meanwhile
            if not file.path:
                for lead in group.leads:
                    lead.files[0].remote = transfer.remote
            match outcome:
                case Delivered(size, sha256):
                    installing.submit(group, partial(installing.take, group, file, size, sha256))
                case Unfinished():
                    log.info("%s", outcome)
                    again.append(transfer)
                case DownloadFailed():
                    self._fail(group.leads, outcome)

        def probe_again(remote: Remote) -> Remote:
            # The URL that was asked may itself be signed, so it is looked up anew.
            file = asked[remote.url]
            found = self._looking.probe(file, file.locate(), means.patience)
            asked[found.url] = file
            return found

        def bring(engine: Engine, transfers: Sequence[Transfer], policy: Policy) -> None:
            engine(
                transfers,
                done=done,
                report=means.meter.report,
                cancelled=means.stop,
                patience=replace(means.patience, policy=policy),
                probe_again=probe_again,
            )

        jobs: list[tuple[Engine, list[Transfer], Policy]] = []
        # Other programs look names up themselves, and would not ask the policy.
        guarded = [each for each in waiting if owners[each.part][1].policy != OPEN]
        waiting = [each for each in waiting if each not in guarded]
        for fits, engine in means.fast:
            fit = [transfer for transfer in waiting if fits(transfer)]
            if fit:
                jobs.append((engine, fit, OPEN))
                waiting = [transfer for transfer in waiting if transfer not in fit]
        for left, policy in ((waiting, OPEN), (guarded, means.policy)):
            if left:
                jobs.append((ranged.download, left, policy))
        with ThreadPoolExecutor(len(jobs), thread_name_prefix="engine") as pool:
            for job in [pool.submit(bring, *job) for job in jobs]:
                job.result()
        for policy in dict.fromkeys(owners[each.part][1].policy for each in again):
            left = [each for each in again if owners[each.part][1].policy == policy]
            bring(ranged.download, left, policy)

    def _release(self) -> None:
        """Make ComfyUI let go of its files, once for all that is evicted in this job."""
        if self._means.release is not None and not self._released:
            self._released = True
            self._means.release()

    def _fail(self, leads: Collection[Lead], failure: DownloadFailed) -> None:
        """Note that a source has failed; where it was the last one, everything stops."""
        with self._lock:
            for task in dict.fromkeys(lead.task for lead in leads):
                task.fail(failure)
        self._stop_if_lost(leads)

    def _refuse(self, leads: Collection[Lead], refusal: CallerError) -> None:
        """Note that a source cannot be used; everything stops unless there is another one."""
        with self._lock:
            for task in dict.fromkeys(lead.task for lead in leads):
                try:
                    task.refuse(refusal)
                except CallerError as err:
                    self._refusals.append(err)
        self._stop_if_lost(leads)

    def _stop_if_lost(self, leads: Collection[Lead]) -> None:
        self._lost = self._lost or any(lead.task.lost for lead in leads)
        if self._lost or self._refusals:
            self._means.stop.set()


def _grouped(leads: Sequence[Lead]) -> list[Group]:
    """Leads to the same content together."""
    groups: dict[str, Group] = {}
    hashes: dict[str, str] = {}
    # A name without a hash goes with one of the same file that has one.
    for lead in sorted(leads, key=lambda lead: not lead.files[0].sha256):
        key = lead.key
        if lead.version and not lead.files[0].sha256:
            key = hashes.get(lead.source, key)
        hashes.setdefault(lead.source, key)
        groups.setdefault(key, Group(key)).leads.append(lead)
    return list(groups.values())


def _size(file: File, base: Path) -> int | None:
    """Bytes of a file that is to come, where anybody knows."""
    url = file.place.url
    if file.remote is None and scheme(url) in ("", "file"):
        path = base / (unquote(urlsplit(url).path) if scheme(url) else url)
        try:
            return path.stat().st_size
        except OSError:
            return None  # who reads it will tell
    return file.expected_size


def _needed(group: Group, file: File, part: Path, base: Path) -> int:
    """Bytes of the disk that a file still takes, and what is unpacked from it."""
    size = _size(file, base) or 0
    try:
        there = part.stat().st_blocks * 512
    except OSError:
        there = 0
    unpacked = size if any(lead.place.extract for lead in group.leads) else 0
    return max(0, size - there) + unpacked
