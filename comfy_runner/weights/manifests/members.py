"""One JSON object of a weights manifest, whose members are read with every fault noted."""

import re
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Any
from unicodedata import normalize

from comfy_runner.errors import Problem
from comfy_runner.fetch.urls import scheme
from comfy_runner.weights.manifests.schema import HASH, LARGEST, RELATIVE

HALF = re.compile("[\ud800-\udfff]")
"""Half of a UTF-16 pair, which JSON can name and no file can hold."""


class Members:
    """One JSON object of the manifest, whose members are read with every fault noted."""

    def __init__(
        self, members: Mapping[str, Any], place: str, label: str, problems: list[Problem]
    ) -> None:
        self.members = members
        self.place = place
        self.label = label
        self.problems = problems

    def fault(self, key: str, what: str) -> None:
        place = f"{self.place}.{key}" if self.place and key else self.place or key
        self.problems.append(
            Problem("bad_manifest", f"{self.label}: {key or 'the entry'} {what}", input=place)
        )

    def only(self, allowed: Collection[str]) -> None:
        for key in [key for key in self.members if key not in allowed]:
            near = get_close_matches(key, allowed, 1)
            self.fault(key, f"is no known member{f': is it {near[0]}?' if near else '.'}")

    def text(self, key: str, *, required: bool = False) -> str:
        value: object = self.members.get(key, "")
        if not isinstance(value, str):
            self.fault(key, "must be a text.")
            return ""
        if required and not value:
            self.fault(key, "is missing.")
        if HALF.search(value):
            self.fault(key, "holds half a character.")
        return value

    def link(self, key: str) -> str:
        url = self.text(key)
        if url and scheme(url) not in ("http", "https"):
            self.fault(key, "must be an http or https URL.")
        return url

    def choice[T: str](self, key: str, default: T, *others: T) -> T:
        value = self.members.get(key, default)
        for allowed in (default, *others):
            if value == allowed:
                return allowed
        self.fault(key, f"must be one of {', '.join(filter(None, (default, *others)))}.")
        return default

    def flag(self, key: str) -> bool:
        value = self.members.get(key, False)
        if not isinstance(value, bool):
            self.fault(key, "must be true or false.")
        return value is True

    def whole(self, key: str, least: int) -> int | None:
        value = self.members.get(key)
        if value is None or (type(value) is int and least <= value <= LARGEST):
            return value
        is_large = type(value) is int and value > LARGEST
        self.fault(
            key, "is too large." if is_large else f"must be a whole number of at least {least}."
        )
        return None

    def digest(self, key: str) -> str | None:
        value = self.members.get(key)
        if value is None or (isinstance(value, str) and HASH.fullmatch(value)):
            return value
        self.fault(key, "must be 64 hexadecimal digits in small letters.")
        return None

    def relative(self, key: str, value: object) -> str:
        if isinstance(value, str) and RELATIVE.fullmatch(value):
            return normalize("NFC", value)
        self.fault(key, f"must be a relative path without '..' or '\\', not {value!r}.")
        return ""

    def texts(self, key: str) -> list[str]:
        return [value for value in self.array(key) if self._is_text(key, value)]

    def objects(self, key: str) -> Iterator["Members"]:
        for number, value in enumerate(self.array(key)):
            place = f"{self.place}.{key}[{number}]" if self.place else f"{key}[{number}]"
            label = self.label if self.place else _label(value)
            if isinstance(value, Mapping):
                yield Members(value, place, label, self.problems)
            else:
                Members({}, place, label, self.problems).fault("", "must be an object.")

    def array(self, key: str, *, least: int = 0) -> list[Any]:
        value = self.members.get(key, [])
        if not isinstance(value, list):
            self.fault(key, "must be a list.")
            return []
        if len(value) < least:
            self.fault(key, f"must be a list of at least {least}.")
        return value

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self.members.get(key, {})
        if isinstance(value, Mapping):
            return value
        self.fault(key, "must be an object.")
        return {}

    def _is_text(self, key: str, value: object) -> bool:
        if isinstance(value, str) and value and not HALF.search(value):
            return True
        self.fault(key, f"must hold texts only, not {value!r}.")
        return False


def _label(value: object) -> str:
    """What an entry is called in a problem, as far as it says so: `loras/x.safetensors`."""
    match value:
        case {"name": str(name), "folders": [str(folder), *_]}:
            return f"{folder}/{name}"
        case {"name": str(name)}:
            return name
        case _:
            return "an entry without a name"
