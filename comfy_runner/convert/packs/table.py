"""What is known of each type: its kind, what is to be said of it, the rule for its values."""

from collections.abc import Mapping

from comfy_runner.convert.network import Kind, Packs, ValueRule
from comfy_runner.convert.packs import values
from comfy_runner.convert.packs.chance import EFFICIENT_SAMPLERS, RELAY, REPEATER, UNMUTER
from comfy_runner.convert.packs.lora_manager import lora_manager
from comfy_runner.convert.packs.video_helper import video_helper
from comfy_runner.convert.ui import UiNode

_DROPPED = (
    # rgthree-comfy 13b4399: what they switch shows in the modes that the file stores.
    *("Fast Muter (rgthree)", "Fast Bypasser (rgthree)", "Fast Actions Button (rgthree)"),
    *("Fast Groups Muter (rgthree)", "Fast Groups Bypasser (rgthree)"),
    *(UNMUTER, REPEATER, RELAY, "Node Collector (rgthree)", "Node Combiner (rgthree)"),
    *("Label (rgthree)", "Bookmark (rgthree)", "Power Conductor (rgthree)"),
    "Note Plus (mtb)",  # comfy_mtb eabe43d
    "easy bookmark",  # ComfyUI-Easy-Use 4de1ab3
    "Show Metadata [Crystools]",  # ComfyUI-Crystools 2f18256
    "PresetText|pysssss",  # ComfyUI-Custom-Scripts 609f3af, see REMARKS
    "VHS_SelectLatest",  # ComfyUI-VideoHelperSuite 4ee72c0, see REMARKS
)

_SETS = {
    "GetNode": "SetNode",  # ComfyUI-KJNodes of 2026-05, and diffus3's ComfyUI-extensions
    "easy getNode": "easy setNode",  # ComfyUI-Easy-Use 4de1ab3
    "GetNode [Eclipse]": "SetNode [Eclipse]",  # ComfyUI_Eclipse
}

_KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(_DROPPED, Kind.NOTE),
    **dict.fromkeys(_SETS, Kind.GET),
    **dict.fromkeys(_SETS.values(), Kind.SET),
    "Reroute (rgthree)": Kind.PASS,
    "mxReroute": Kind.PASS,  # ComfyUI-mxToolkit 7f7a0e5
    # cg-use-everywhere a3952a4
    **dict.fromkeys(("Anything Everywhere", "Anything Everywhere3"), Kind.SENDER),
    **dict.fromkeys(("Anything Everywhere?", "Prompts Everywhere"), Kind.SENDER),
}

_SUCCESSORS = {"Seed Everywhere": "PrimitiveInt"}
"""cg-use-everywhere puts ComfyUI's own class in its place since 7.5."""

SAVERS = frozenset(
    {"VHS_VideoCombine", "SaveImageKJ", "SaveImageWithAlpha", "SaveStringKJ", "ModelSaveKJ"}
    | {"DecodeAndSaveVideo", "LoraExtractKJ"}
)
"""Classes whose `filename_prefix` has its `%...%` replaced (VideoHelperSuite, KJNodes)."""

_STORED = "what it sets is known to a browser only; the nodes it is connected to keep their values"
_GLOBAL = "it changes other nodes only in the editor; here they keep their values"

REMARKS: Mapping[str, str] = {
    "PresetText|pysssss": _STORED,
    "VHS_SelectLatest": _STORED,
    "mxStop": "it interrupts the run when it is reached",
    "GlobalSeed //Inspire": _GLOBAL,  # ComfyUI-Inspire-Pack 1aef2c5
    "GlobalSampler //Inspire": _GLOBAL,
    "easy globalSeed": _GLOBAL,
}
"""What a caller should know about live nodes of a type."""

_REFUSED: Mapping[str, str] = {
    "MultiPrimitive|pysssss": "Its pack has no class for it.",
    "Constant (mtb)": "Its pack has switched its class off.",
    "Dynamic Context (rgthree)": "Its inputs are known to its pack's unreleased front end only.",
    "Dynamic Context Switch (rgthree)": "Its inputs are known to an unreleased front end only.",
}

_WITH_COMBOS = (
    *("ImpactWildcardProcessor", "ImpactWildcardEncode", "WildcardEncode //Inspire"),
    *("easy wildcards", "ToDetailerPipe", "ToDetailerPipeSDXL", "EditDetailerPipe"),
    *("EditDetailerPipeSDXL", "BasicPipeToDetailerPipe", "BasicPipeToDetailerPipeSDXL"),
)

_VALUE_RULES: Mapping[str, ValueRule] = {
    # rgthree-comfy 13b4399
    "Power Lora Loader (rgthree)": values.power_loras,
    "Power Primitive (rgthree)": values.power_primitive,
    "Power Puter (rgthree)": values.power_puter,
    "Power Prompt (rgthree)": values.power_prompt,
    "Power Prompt - Simple (rgthree)": values.power_prompt,
    "SDXL Power Prompt - Positive (rgthree)": values.power_prompt,
    "SDXL Power Prompt - Simple / Negative (rgthree)": values.power_prompt,
    # efficiency-nodes-comfyui 4579b7d
    **dict.fromkeys(("Efficient Loader", "Eff. Loader SDXL"), values.efficient_loader),
    **dict.fromkeys(EFFICIENT_SAMPLERS, values.efficient_sampler),
    "HighRes-Fix Script": values.high_res_fix,
    # ComfyUI-mxToolkit 7f7a0e5
    **dict.fromkeys(("mxSlider", "mxSlider2D"), values.sliders),
    # ComfyUI-Impact-Pack 727295b, ComfyUI-Inspire-Pack 1aef2c5, ComfyUI-Easy-Use 4de1ab3
    **dict.fromkeys(_WITH_COMBOS, values.wildcards),
    "PromptBuilder //Inspire": values.prompt_builder,
    "ConcatConditioningsWithMultiplier //Inspire": values.multipliers,
    # ComfyUI-Custom-Scripts 609f3af, and files of 2023
    "ReroutePrimitive|pysssss": values.value_or_link,
    **dict.fromkeys(("LoraLoader|pysssss", "CheckpointLoader|pysssss"), values.contents),
}


def refusal(node: UiNode) -> str:
    """Why a node cannot be converted without its pack's front end; nothing for most."""
    if node.type == "Repeater|pysssss":
        match node.values:
            case [_, "single", "reuse", *_]:
                return ""
            case _:
                return "Its pack's front end writes copies of other nodes for it."
    if node.type.startswith("## "):
        return "It is a component of ComfyUI-Workflow-Component, which is no longer supported."
    return _REFUSED.get(node.type, "")


def _value_rule(node_type: str) -> ValueRule | None:
    if node_type.startswith("VHS_"):
        return video_helper
    if node_type.endswith("(LoraManager)"):
        return lora_manager
    return _VALUE_RULES.get(node_type)


PACKS = Packs(_KINDS, _SETS, _SUCCESSORS, _value_rule)
"""What is known of packs."""
