"""LoRAs for the bundled model, and its workflow with some of them."""

from typing import Any

import numpy
from graphs import bundled, node
from safetensors.numpy import save


def lora(seed: int) -> bytes:
    """A LoRA for the bundled model: rank 2, on the first block's attention."""
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    draw = numpy.random.default_rng(seed)
    return save(
        {
            f"{key}.lora_down.weight": draw.normal(size=(2, 128)).astype("float32"),
            f"{key}.lora_up.weight": draw.normal(size=(384, 2)).astype("float32"),
            f"{key}.alpha": numpy.float32([2.0]).reshape(()),
        }
    )


def workflow(count: int = 1) -> dict[str, Any]:
    """The bundled picture with so many LoRAs in a row."""
    graph = bundled("text_to_picture")
    model: list[Any] = ["1", 0]
    for number in range(count):
        loader = node("LoraLoaderModelOnly", f"LoRA {number}", model=model, strength_model=1.0)
        loader["inputs"]["lora_name"] = "none.safetensors"
        graph[str(20 + number)] = loader
        model = [str(20 + number), 0]
    graph["7"]["inputs"] |= {"model": model, "steps": 3}
    return graph
