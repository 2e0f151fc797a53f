"""Makes the node ids of a file's subgraphs unique, as the editor does when it opens the file."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from comfy_runner.convert.ui import Definition, Graph, UiDocument, UiNode, number


def renumber(document: UiDocument) -> UiDocument:
    """A copy in which no node of a definition has the id of another node of the file.

    Ids of the root come first; then definitions and their nodes in the file's order: an id seen
    before is replaced by the next free number after the root's counter, any other raises the
    counter (front end 1.47.12 `subgraphDeduplication.ts`). The new ids stand in the API workflow
    (`instance:inner`), so the order matters. Of several nodes with one id in a definition, links
    mean the last, as they do in the editor.
    """
    if not document.definitions:
        return document
    # Ids that the root has as text are not in the way there.
    taken = {
        node_id
        for node_id, node in document.root.nodes.items()
        if not isinstance(node.raw.get("id"), str)
    }
    counter = document.last_node_id
    renamed: dict[str, _NewIds] = {}
    for definition in document.definitions.values():
        new = _NewIds({}, {})
        for key in definition.graph.nodes:
            node_id = definition.graph.again.get(key, key)
            if node_id in taken:
                counter += 1
                while str(counter) in taken:
                    counter += 1
                new.of_nodes[key] = new.in_links[node_id] = str(counter)
                taken.add(str(counter))
            else:
                taken.add(node_id)
                counter = max(counter, number(node_id) or 0)
        if new.of_nodes:
            renamed[definition.id] = new
    if not renamed:
        return document
    links = {key: new.in_links for key, new in renamed.items()}
    definitions = {
        key: _renamed(definition, renamed.get(key, _NewIds({}, {})), links)
        for key, definition in document.definitions.items()
    }
    root = document.root._replace(nodes=_repointed(document.root.nodes, links))
    return document._replace(root=root, definitions=definitions)


class _NewIds(NamedTuple):
    """What changes in one definition."""

    of_nodes: dict[str, str]
    """Key of a node to its new id."""
    in_links: dict[str, str]
    """Id that links name to the new one: of several nodes with one id, that of the last."""


def _renamed(
    definition: Definition, new: _NewIds, all_new: Mapping[str, Mapping[str, str]]
) -> Definition:
    links = {
        key: link._replace(
            origin=new.in_links.get(link.origin, link.origin),
            target=new.in_links.get(link.target, link.target),
        )
        for key, link in definition.graph.links.items()
    }
    nodes = _repointed(definition.graph.nodes, all_new)
    renamed = {
        new.of_nodes.get(key, key): node._replace(id=new.of_nodes.get(key, key))
        for key, node in nodes.items()
    }
    return definition._replace(graph=Graph(renamed, links))


def _repointed(
    nodes: Mapping[str, UiNode], all_new: Mapping[str, Mapping[str, str]]
) -> dict[str, UiNode]:
    """The nodes, with the `proxyWidgets` of instances naming inner nodes by their new ids."""
    return {
        key: _with_proxies(node, all_new[node.type]) if node.type in all_new else node
        for key, node in nodes.items()
    }


def _with_proxies(node: UiNode, new_ids: Mapping[str, str]) -> UiNode:
    proxies = node.properties.get("proxyWidgets")
    if not isinstance(proxies, list):
        return node
    changed: list[Any] = [
        [new_ids.get(entry[0], entry[0]), *entry[1:]]
        if isinstance(entry, list) and entry and isinstance(entry[0], str)
        else entry
        for entry in proxies
    ]
    properties = {**node.properties, "proxyWidgets": changed}
    return node._replace(raw={**node.raw, "properties": properties})
