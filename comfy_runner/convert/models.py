"""What an editor's file itself tells of the models that its nodes name: `properties.models`."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from comfy_runner.convert.network import Kind, NetNode, Network

HASH = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class ModelHint:
    """Where a workflow's author says that a model comes from; a stranger's word, so not trusted."""

    name: str
    """The name that stands in a node."""
    url: str = field(repr=False)
    """Where the file is; empty where the author does not say, and possibly with a token in it."""
    directory: str
    """Model folder, perhaps by its old name; empty where the author does not say."""
    sha256: str | None
    """Hash of the file: 64 hexadecimal digits in small letters."""
    node_id: str
    """Id in the converted workflow of the node that says so; empty for what the file says."""


def model_hints(document: Mapping[str, Any], root: Network) -> tuple[ModelHint, ...]:
    """What the live nodes say in the file's order, those of subgraphs too; then the file itself.

    An entry is `{"name", "url", "directory", "hash", "hash_type"}` (front end 1.47.12,
    `platform/workflow/validation/schemas/workflowSchema.ts`); those of muted and bypassed nodes do
    not count (`platform/missingModel/missingModelScan.ts`), nor do hashes other than SHA256.
    """
    found = _Found()
    hints = [_hint(entry, node_id) for node_id, entry in found.of(root, is_root=True)]
    hints += [_hint(entry, "") for entry in _entries(document.get("models"))]
    return tuple(hints)


class _Found:
    """The entries of each network; a definition with many instances is looked through once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, bool], list[tuple[str, Mapping[str, Any]]]] = {}

    def of(self, network: Network, *, is_root: bool) -> list[tuple[str, Mapping[str, Any]]]:
        """Each entry, with the id that its node has in this network: `7`, or `12:7`."""
        key = id(network), is_root
        if key not in self._known:
            self._known[key] = [
                found
                for node in network.nodes.values()
                # Inside a definition the editor sends what such an instance stands for.
                if not node.is_off or (node.kind is Kind.INSTANCE and not is_root)
                for found in self._of_node(node)
            ]
        return self._known[key]

    def _of_node(self, node: NetNode) -> Iterator[tuple[str, Mapping[str, Any]]]:
        node_id = node.node.id
        for entry in _entries(node.node.properties.get("models")):
            yield node_id, entry
        if node.network is not None:
            for inner, entry in self.of(node.network, is_root=False):
                yield f"{node_id}:{inner}", entry


def _entries(raw: Any) -> Iterator[Mapping[str, Any]]:
    for entry in raw if isinstance(raw, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("name"), str) and entry["name"]:
            yield entry


def _hint(entry: Mapping[str, Any], node_id: str) -> ModelHint:
    digest = _text(entry, "hash").strip()
    is_sha256 = _text(entry, "hash_type").replace("-", "").lower() == "sha256"
    return ModelHint(
        entry["name"],
        _text(entry, "url"),
        _text(entry, "directory"),
        digest.lower() if is_sha256 and HASH.fullmatch(digest) else None,
        node_id,
    )


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    return value if isinstance(value, str) else ""
