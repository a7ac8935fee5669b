"""magvid: conditional video generators in JAX/Flax (MAGVIT, MAVIN, AID, MagDiff).

Importing this package is light: nothing is imported until a module is named, e.g. ``from magvid.models.tokenizer import
Tokenizer``.
"""

__version__ = "0.1.0"
