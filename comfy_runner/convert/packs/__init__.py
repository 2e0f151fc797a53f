"""Nodes of packs that behave otherwise than their class says.

Each rule names the pack and the version of it that was read. Rules that a file of an older version
needs are told where they are applied.
"""

from comfy_runner.convert.packs.chance import roll, unmute
from comfy_runner.convert.packs.table import PACKS, REMARKS, SAVERS, refusal

__all__ = ["PACKS", "REMARKS", "SAVERS", "refusal", "roll", "unmute"]
