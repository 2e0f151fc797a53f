"""Tiny wheels, made on the spot, for resolving without a package index."""

import base64
import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path


def wheel(folder: Path, name: str, version: str, requires: Sequence[str] = ()) -> Path:
    """Write a wheel of a package that holds one module with its version."""
    folder.mkdir(parents=True, exist_ok=True)
    module, meta = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
    required = "".join(f"Requires-Dist: {text}\n" for text in requires)
    files = {
        f"{module}.py": f'VERSION = "{version}"\n',
        f"{meta}/METADATA": (
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{required}"
        ),
        f"{meta}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    lines = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        lines.append(f"{path},sha256={digest.decode()},{len(text.encode())}\n")
    files[f"{meta}/RECORD"] = f"{''.join(lines)}{meta}/RECORD,,\n"
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in files.items():
            archive.writestr(member, text)
    return path
