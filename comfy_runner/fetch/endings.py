"""Endings of model files, in small letters with their dot: one list for each question."""

SAFETENSORS = frozenset({".safetensors", ".sft"})
"""Files of the safetensors format: their header tells whether they are whole."""
RUN_NO_CODE = SAFETENSORS | {".gguf"}
"""Weights whose loading runs no code of theirs."""
LISTED = SAFETENSORS | {".ckpt", ".pt", ".pt2", ".bin", ".pth", ".pkl"}
"""What ComfyUI takes for a model: `supported_pt_extensions` in folder_paths.py, 0.30.0."""
MODELS = LISTED | {".gguf", ".onnx"}
"""What a file name ends in that can only be a model's: those that ComfyUI lists, and the front end
1.47.12 (`missingModelScan.ts`)."""
WEIGHTS = MODELS | {".engine", ".pickle", ".h5", ".npy", ".npz", ".msgpack"}
"""Weights of any kind, also those that only node packs load."""
ARCHIVES = frozenset({".tar", ".tgz", ".gz", ".xz", ".bz2", ".zip"})
"""What models come packed in."""
