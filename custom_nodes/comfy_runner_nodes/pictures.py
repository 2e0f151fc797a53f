"""A picture that a model takes, and the pictures that it gives."""

import re

import nodes

from .settings import CATEGORY, description_widget, name_widget

LONGEST_NAME = 80
"""Characters of a result's name that its files are called by."""


class ComfyRunnerImage:
    """A picture, loaded as LoadImage does it."""

    DESCRIPTION = "A picture that callers of the model can give."
    CATEGORY = CATEGORY
    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "give"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        """The name, the file with a button to upload one, and what is said of it."""
        return {
            "required": {
                "name": name_widget("image"),
                "image": nodes.LoadImage.INPUT_TYPES()["required"]["image"],
            },
            "optional": {"description": description_widget()},
        }

    @classmethod
    def IS_CHANGED(cls, image, **_):  # noqa: N802
        """Changes with the file's content."""
        return nodes.LoadImage.IS_CHANGED(image)

    @classmethod
    def VALIDATE_INPUTS(cls, image):  # noqa: N802
        """Whether there is such a file."""
        return nodes.LoadImage.VALIDATE_INPUTS(image)

    def give(self, *, image, **_):
        """The picture and its mask."""
        return nodes.LoadImage().load_image(image)


class ComfyRunnerResult:
    """Pictures that the model returns, saved as SaveImage does it."""

    DESCRIPTION = (
        "Saves pictures, and marks them as what the model returns. Where a workflow has such nodes,"
        " the model returns what they save and nothing else."
    )
    CATEGORY = CATEGORY
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    FUNCTION = "save"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        """The pictures and the result's name, which begins the names of their files."""
        return {
            "required": {"images": ("IMAGE",), "name": name_widget("result")},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def save(self, images, name, prompt=None, extra_pnginfo=None):
        """What SaveImage gives: the files for the editor, and the pictures."""
        prefix = re.sub(r"[^\w.-]+", "_", name).strip("._")[:LONGEST_NAME] or "result"
        return nodes.SaveImage().save_images(images, prefix, prompt, extra_pnginfo)
