"""What the store has already: given to those who may have it, and remembered by where it came from.

What came with somebody's token, or from a signed address, is given only to those whom its host has
answered, too. A sha256 that a caller or just any host states opens no such object.
"""

import logging
import threading
import time
from contextlib import ExitStack
from urllib.parse import urlsplit

from comfy_runner.errors import DownloadFailed
from comfy_runner.fetch.judge import judge
from comfy_runner.weights.bringing.made_names import ending, made_name
from comfy_runner.weights.bringing.tasks import Addressed, Brought, Lead, Means, Task
from comfy_runner.weights.hosts.addresses import canonical
from comfy_runner.weights.kept.objects import Object, Origin
from comfy_runner.weights.weight import Weight

log = logging.getLogger(__name__)


class Keeping:
    """The store as the threads of one job use it."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._lock = threading.Lock()
        self.brought = Brought()

    def recall(self, lead: Lead) -> Origin | None:
        """What is remembered of where a lead leads."""
        recall = self._means.objects.recall
        known = recall(lead.identity)
        if known is None and isinstance(lead.task.wanted, Addressed) and not lead.place.extract:
            # That it is an archive is known only once the host has answered.
            known = recall(f"{lead.identity}\n\n0")
        return known

    def recall_address(self, wanted: Addressed) -> Origin | None:
        """What is remembered of an address that had to be looked up at its host."""
        return self._means.objects.recall(_asked(wanted))

    def is_fresh(self, known: Origin) -> bool:
        """Whether an origin is good for everybody, without asking its host again."""
        if known.private:
            return False
        age = time.time() - known.checked_at
        return known.immutable or 0 <= age < self._means.recheck_after

    def has_by_hash(self, lead: Lead) -> str | None:
        """The id of an object that a lead's host has just been seen to give, by its sha256."""
        file, remote = lead.files[0], lead.remote
        if remote is None or lead.place.extract or lead.is_tree:
            return None
        sha256 = file.sha256 or remote.sha256
        if sha256 is None:
            return None
        trusted = remote.sha256 == sha256 and self._is_trusted(remote.url)
        if trusted or self._means.objects.recall(_public(sha256)) is not None:
            return sha256
        return None

    def use(self, task: Task, identity: str, name: str) -> bool:
        """Give a task the names of an object that the store has; False when it has it no more.

        `name` is what its source calls it. Raises: `InvalidInput`, `DownloadFailed`.
        """
        objects = self._means.objects
        if task.sha256 not in (None, identity):
            return False
        with ExitStack() as pins:
            pins.enter_context(objects.pin([identity]))
            found = objects.get(identity)
            if found is None or (found.kind == "tree") != task.is_folder:
                return False
            with self._lock:
                self._means.pins.enter_context(pins.pop_all())
        objects.touch([identity])
        self.give_names(task, found, name)
        return True

    def holds(self, wanted: Weight) -> bool:
        """Whether a weight stands in all its folders; what the store has of it is pinned first."""
        means = self._means
        for folder in wanted.folders:
            known = means.objects.named(folder, wanted.name)
            if known is not None:
                self.pin(known.id)
        return means.folders.holds(wanted)

    def pin(self, identity: str) -> None:
        """Keep an object, there or still to come, until the pins are closed."""
        with self._lock:
            self._means.pins.enter_context(self._means.objects.pin([identity]))

    def remember(self, lead: Lead, kept: Object, name: str) -> None:
        """Note where an object came from, for the next one who wants it from there."""
        objects, place = self._means.objects, lead.place
        if lead.remote is None and not place.immutable:
            return  # a file of this machine changes without anybody telling
        private = lead.is_private
        known = objects.recall(lead.identity)
        if known is not None and (known.object_id, known.version) == (kept.id, lead.version):
            private = private and known.private  # who has a token does not make it secret again
        self._note_origin(lead.identity, lead, kept, name, private, immutable=place.immutable)
        if page := _page_of(lead):
            self._note_origin(page, lead, kept, name, private)
        if not private:
            self._note_origin(_public(kept.id), lead, kept, name, private)

    def remember_page(self, lead: Lead, known: Origin) -> None:
        """Note that an address leads to what is known, as its host has just said of it."""
        kept = self._means.objects.get(known.object_id)
        if kept is not None and (page := _page_of(lead)):
            self._note_origin(page, lead, kept, known.file_name, known.private)

    def _note_origin(
        self,
        identity: str,
        lead: Lead,
        kept: Object,
        name: str,
        private: bool,
        *,
        immutable: bool = False,
    ) -> None:
        """Note where an object came from; what the disk refuses is only logged."""
        try:
            self._means.objects.remember(
                identity,
                lead.version,
                kept,
                file_name=name,
                private=private,
                immutable=immutable,
                shown=lead.place.shown,
            )
        except DownloadFailed as err:  # it is in place all the same
            log.warning("%s", err)

    def give_names(self, task: Task, kept: Object, name: str) -> None:
        """The object's names in the model folders, as the task wants them.

        Raises: `InvalidInput`, `DownloadFailed`.
        """
        objects, folders, wanted = self._means.objects, self._means.folders, task.wanted
        if isinstance(wanted, Weight):
            for folder in wanted.folders:
                if folders.find(wanted, folder) is None:
                    objects.link(kept, folder, wanted.name)
            task.name = wanted.name
            return
        suffix = ending(name, allow_pickles=self._means.allow_pickles, shown=task.label)
        stem = (wanted.name or name).removesuffix(suffix)
        made = made_name(f"{stem}{suffix}", kept.id)
        # It may have come by way of a manifest, which may name whatever it likes.
        judge(kept.path, name=made, size=None, sha256=None, known_sha256=kept.id, shown=task.label)
        objects.link(kept, wanted.folder, made)
        task.name = made

    def count(self, size: int) -> None:
        """A file of so many bytes has come."""
        with self._lock:
            self.brought.files += 1
            self.brought.size += size

    def note(self, text: str) -> None:
        """Tell the caller something, once."""
        with self._lock:
            if text not in self.brought.notes:
                self.brought.notes.append(text)

    def _is_trusted(self, url: str) -> bool:
        """Whether a URL is of a host that the settings name: what it states of a file is so."""
        hosts = self._means.hosts
        asked = urlsplit(url)
        return any(
            (asked.scheme, asked.netloc) == (own.scheme, own.netloc)
            for own in map(urlsplit, (hosts.hf, hosts.civitai))
        )


def _page_of(lead: Lead) -> str:
    """What the address is remembered by where a host had to say what it leads to; else empty."""
    wanted = lead.task.wanted
    if not isinstance(wanted, Addressed) or canonical(wanted.address) == lead.place.identity:
        return ""
    return _asked(wanted)


def _asked(wanted: Addressed) -> str:
    return f"asked\n{wanted.folder}\n{canonical(wanted.address)}"


def _public(identity: str) -> str:
    return f"public\n{identity}"
