"""The widgets that all nodes of this pack have."""

CATEGORY = "comfy_runner"


def name_widget(default: str) -> tuple[str, dict[str, object]]:
    """What a caller of the model calls the input or the result; `default` is there at first."""
    tooltip = "What it is called by those who call the model. Give each its own name."
    return ("STRING", {"default": default, "tooltip": tooltip, "socketless": True})


def description_widget() -> tuple[str, dict[str, object]]:
    """What a caller of the model is told of the input."""
    tooltip = "What those who call the model are told of it, in a sentence."
    return ("STRING", {"default": "", "tooltip": tooltip, "socketless": True})
