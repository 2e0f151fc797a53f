"""Sizes and hashes of a manifest's files, filled in from what their hosts state, or compared."""

import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from urllib.parse import quote

from comfy_runner.errors import CallerError, DownloadFailed, InvalidInput, Problem
from comfy_runner.weights.manifests.document import Content
from comfy_runner.weights.manifests.host_look import Stated
from comfy_runner.weights.weight import Member, Source, Weight

PARALLEL = 8
"""Hosts' answers that are awaited at once."""
TICK = 0.1
"""Longest wait, in seconds, until Ctrl-C is noticed."""


Look = Callable[[Source], Stated]
"""Asks for one source, from any thread. Raises: `DownloadFailed`, `CallerError`, `Cancelled`."""
Listing = Callable[[Source], Collection[Member]]
"""The files of a repository. Raises as `Look` does."""
Tell = Callable[[int, int, str], None]
"""Called with the entries done, all of them, and the label of the one that is done now."""


@dataclass(frozen=True, slots=True)
class Locked:
    """What asking all hosts gave."""

    content: Content
    """The manifest with what was missing; what it said before stays."""
    filled: tuple[str, ...]
    """Entries that got something, as `folder/name`."""
    differing: tuple[str, ...]
    """Where a host states another content than the manifest, or than another mirror."""
    failed: tuple[str, ...]
    """What could not be asked, and why."""
    incomplete: tuple[str, ...]
    """Entries that lack a size or hash still, though all could be asked: no host states it."""


def lock(
    content: Content,
    look: Look,
    *,
    listing: Listing,
    tell: Tell,
    cancelled: threading.Event,
    only: Collection[str] = (),
    again: bool = False,
    update: bool = False,
) -> Locked:
    """The manifest with the sizes and hashes that the hosts state; a failure stops no other entry.

    `cancelled` must end `look`, too: it is set when the call ends early.

    Every mirror of an entry is asked, since all must lead to the same file. `only` chooses entries
    by `folder/name`, name or group. What is complete is asked with `again` alone. `update` puts
    what the first mirror states in place of what the manifest says.

    Raises: `InvalidInput` for a name in `only` that means nothing; `Cancelled`.
    """
    chosen = _chosen(content, only)
    asked = [w for w in content.weights if w.label in chosen and (again or not is_complete(w))]
    jobs = {weight.label: _Job(weight, look, listing, update) for weight in asked}
    _run(jobs, tell, cancelled)
    weights = tuple(
        jobs[weight.label].weight if weight.label in jobs else weight for weight in content.weights
    )
    return Locked(
        content=replace(content, weights=weights),
        filled=tuple(job.weight.label for job in jobs.values() if job.weight != job.before),
        differing=tuple(line for job in jobs.values() for line in job.differing),
        failed=tuple(line for job in jobs.values() for line in job.failed),
        incomplete=tuple(
            weight.label
            for weight in weights
            if weight.label in chosen and not is_complete(weight) and not jobs[weight.label].failed
        ),
    )


def is_complete(weight: Weight) -> bool:
    """Whether sizes and hashes of all that is transferred for the weight are known."""
    archives = [source for source in weight.urls if source.extract]
    parts: list[Weight | Source | Member] = [*archives]
    if len(archives) < len(weight.urls):
        parts += [weight] if weight.kind == "file" else weight.files or [weight]
    return all(part.size is not None and part.sha256 is not None for part in parts)


def _chosen(content: Content, only: Collection[str]) -> set[str]:
    """Labels of the entries that are meant."""
    if not only:
        return {weight.label for weight in content.weights}
    chosen: set[str] = set()
    problems = []
    for name in only:
        names = {name, *content.groups.get(name, ())}
        found = {
            weight.label
            for weight in content.weights
            for folder in weight.folders
            if names & {weight.name, f"{folder}/{weight.name}"}
        }
        chosen |= found
        if not found:
            what = f"No entry or group is called {name!r}."
            problems.append(Problem("unknown_entry", what, "Write FOLDER/NAME.", input="--only"))
    if problems:
        raise InvalidInput(problems)
    return chosen


def _run(jobs: "dict[str, _Job]", tell: Tell, cancelled: threading.Event) -> None:
    """Run all jobs; the first unexpected failure, or an interrupt here, stops them all."""
    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="lock") as pool:
        running = {pool.submit(job.run): label for label, job in jobs.items()}
        try:
            for done, label in _finished(running):
                tell(done, len(jobs), label)
        except BaseException:
            cancelled.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _finished(running: dict[Future[None], str]) -> Iterator[tuple[int, str]]:
    """How many are done, and which is the last one. Raises what a job raised."""
    open_jobs, done = set(running), 0
    while open_jobs:
        ended, open_jobs = wait(open_jobs, timeout=TICK, return_when=FIRST_COMPLETED)
        for future in ended:
            future.result()
            done += 1
            yield done, running[future]


class _Job:
    """One entry whose sources are asked, one after the other."""

    def __init__(self, weight: Weight, look: Look, listing: Listing, update: bool) -> None:
        self.before = weight
        self.weight = weight
        """With what is known by now."""
        self.differing: list[str] = []
        self.failed: list[str] = []
        self._look = look
        self._listing = listing
        self._update = update
        self._settled: set[str] = set()

    def run(self) -> None:
        for number, source in enumerate(self.before.urls):
            try:
                self._ask(number, source)
            except (DownloadFailed, CallerError) as err:
                self.failed.append(f"{self.weight.label}: {err}")

    def _ask(self, number: int, source: Source) -> None:
        weight = self.weight
        if source.extract:
            stated = self._compared(source, self._look(source), f"the archive {number + 1}")
            known = replace(source, size=stated.size, sha256=stated.sha256)
            urls = (*weight.urls[:number], known, *weight.urls[number + 1 :])
            self.weight = replace(weight, urls=urls)
        elif weight.kind == "file":
            stated = self._compared(weight, self._look(source), "the file")
            self.weight = replace(weight, size=stated.size, sha256=stated.sha256)
        else:
            self._ask_folder(source)

    def _ask_folder(self, source: Source) -> None:
        files = list(self.weight.files or self._listing(source))
        for number, member in enumerate(files):
            place = replace(source, url=f"{source.url.rstrip('/')}/{quote(member.path)}")
            if member.size is None or member.sha256 is None or self.before.files:
                stated = self._compared(member, self._look(place), member.path)
                files[number] = replace(member, size=stated.size, sha256=stated.sha256)
        self.weight = replace(self.weight, files=tuple(files))

    def _compared(self, known: Weight | Source | Member, stated: Stated, part: str) -> Stated:
        """What is to be written; what contradicts is told, and nothing is taken from it."""
        old = Stated(known.size, known.sha256)
        differing = [
            f"{self.weight.label}: {key} of {part} is {ours}{unit} here and {theirs}{unit} at its"
            " host."
            for key, unit, ours, theirs in (
                ("size", " bytes", old.size, stated.size),
                ("sha256", "", old.sha256, stated.sha256),
            )
            if ours is not None and theirs is not None and ours != theirs
        ]
        self.differing += differing
        # What one mirror has settled, the next one can only contradict.
        updates = self._update and part not in self._settled
        self._settled.add(part)
        if differing:
            return stated if updates else old
        return Stated(old.size or stated.size, old.sha256 or stated.sha256)
