"""Group nodes, which older editors had in place of subgraphs, written out as subgraphs.

A file keeps the inside of a group node in an entry of `extra.groupNodes`: `nodes`, `links` as lists
`[from index, slot, to index, slot, link id, type]`, `external` as lists `[index, slot, type]` for
outputs that are also connected outside, and `config`: what its author renamed or hid.

Rules are those of the front end 1.47.12 (`extensions/core/groupNode.ts`) but for what `unpack`
tells.
"""

from comfy_runner.convert.groups.unpacking import unpack

__all__ = ["unpack"]
