"""The editor's own format to the API format, without an editor."""

from comfy_runner.convert.editor import Conversion, convert

__all__ = ["Conversion", "convert"]
