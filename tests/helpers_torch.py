"""Imports of the reference implementations for full tests: `from helpers_torch import torch, diffusers, transformers`.

torchvision's compiled operators may not fit the build of torch, and then nothing that imports torchvision can be
imported, transformers and diffusers among it. No network here uses those operators: what registers them is left out.
"""

import sys
import types

sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))

import diffusers  # noqa: E402
import torch  # noqa: E402
import torchvision  # noqa: E402
import transformers  # noqa: E402

__all__ = ["diffusers", "torch", "torchvision", "transformers"]
