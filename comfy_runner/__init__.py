"""Run any ComfyUI workflow as a Cog model."""

__version__ = "0.1.0"
