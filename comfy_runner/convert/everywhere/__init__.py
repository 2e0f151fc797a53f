"""The links that cg-use-everywhere adds when a workflow is queued, which no file has.

Rules are those of the pack's version 7.8 (a3952a4, `use_everywhere_graph_analysis.js`,
`use_everywhere_classes.js`, `ue_properties.js`), and for senders that an older version saved those
of 6.x (0b0800c, `use_everywhere_nodes.js`): what their author saw, which today's version no longer
does. Not known from a file is the author's setting `connect_to_bypassed`, which is taken to be the
default.
"""

from comfy_runner.convert.everywhere.spread import connect
from comfy_runner.convert.layout import Grouped

__all__ = ["Grouped", "connect"]
