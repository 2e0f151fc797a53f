"""Ends a ComfyUI in which anything is put off, as a pack might that cannot do with it."""

import os
import sys
from types import ModuleType

if type(sys.modules["scipy"]) is not ModuleType:
    print("scipy is not what it was", flush=True)
    os._exit(3)

NODE_CLASS_MAPPINGS = {}
