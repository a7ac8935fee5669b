"""Shared vocabulary: axis letters, small records and the one user-facing exception.

Axes, used in every signature:
    b batch        t h w frames, height, width (pixels)      c channels, 3 = RGB
    t' h' w' latent grid (written th hh wh in jaxtyping)      n tokens of a sequence, t'*h'*w' after the prefix
    v vocabulary   d width                                    k codebook
Values: video is uint8 on disk and in the data pipeline, float32 in [0, 1] inside the models (each model class states
its `vrange`);
`z` latents, `ids` int32 tokens, `key` a typed PRNG key.
"""

import dataclasses
from typing import NamedTuple

import flax.struct
from jaxtyping import Array, Bool, Float, Int

Params = dict  # nested {name: ... Array}, as Flax returns it
Groups = dict[str, Params]  # {"tokenizer": params, "transformer": params, ...}


class UserError(Exception):
    """Bad input from a person: one complete sentence that names the value and the remedy. The command line prints it
    and exits with 2.
    """


@flax.struct.dataclass
class Quantized:
    """What a quantizer returns for latents z (b th hh wh d)."""

    ids: Int[Array, "b th hh wh"]
    codes: Float[Array, "b th hh wh d"]  # straight-through in training: gradient flows to z
    loss: Float[Array, ""]  # sum of the quantizer's own losses (0 at evaluation)
    metrics: dict  # name -> scalar


@flax.struct.dataclass
class Condition:
    """What a denoiser is told beside the noisy latents. A frame axis of 1 means: the same for every frame.

    Layers name the tokens they read, in order; `concat` is joined to the latents along the channels; `scalars` (fps,
    length of a gap, ...) are embedded inside of the U-Net.
    """

    tokens: dict[str, Float[Array, "b t n c"]] = flax.struct.field(default_factory=dict)
    masks: dict[str, Bool[Array, "b n"]] = flax.struct.field(default_factory=dict)  # tokens that count; absent: all
    concat: Float[Array, "b t h w c"] | None = None
    scalars: dict[str, Float[Array, "b"]] = flax.struct.field(default_factory=dict)


class DecodingSteps(NamedTuple):
    """The steps of parallel decoding for display: what the model saw, sampled and hid again.

    Videos are in [0, 1]. Where `masked`, the model saw [MASK], and `seen` shows what it sampled there: cover it.
    """

    seen: Float[Array, "b steps t h w 3"]
    sampled: Float[Array, "b steps t h w 3"]
    unknown: Bool[Array, "b steps th hh wh"]  # sampled in this step; the other tokens are kept
    masked: Bool[Array, "b steps th hh wh"]  # seen as [MASK]
    condition: Bool[Array, "b steps th hh wh"]  # seen as a condition token
    hidden: Bool[Array, "b steps th hh wh"]  # sampled anew in the next step


@dataclasses.dataclass(frozen=True)
class Vocab:
    """Rows of the transformer's word table, in order: codebook, classes, UNCOND, special slots (specs: MAGVIT official
    `vocab`).

    A multi-task model has 16 special slots, a single-task model 1 (only MASK). Special tokens are numbered from the end
    of the table as in the official code (MASK is its -1, SEP its -2, ...), but as plain non-negative ids.
    `unconditional` False leaves out UNCOND: a model that is always given the class (MaskGIT).
    """

    codebook: int
    classes: int = 0
    specials: int = 16
    unconditional: bool = True

    def __post_init__(self):
        if self.codebook < 2 or self.classes < 0 or self.specials not in (1, 16):
            raise ValueError(f"Vocab needs codebook >= 2, classes >= 0 and 1 or 16 special slots, got {self}")
        if not self.unconditional and not self.classes:
            raise ValueError(f"{self}: without classes every sequence begins with UNCOND")

    @property
    def size(self) -> int:
        return self.codebook + self.classes + self.unconditional + self.specials

    @property
    def uncond(self) -> int:
        if not self.unconditional:
            raise ValueError(f"{self} has no UNCOND token: every sequence needs its class")
        return self.codebook + self.classes

    @property
    def mask(self) -> int:
        return self.size - 1

    @property
    def sep(self) -> int:
        return self.size - 2

    def special(self, number: int) -> int:
        """The id of special slot `number` (1 = MASK, 2 = SEP, 3.. = task tokens), counted from the end of the table."""
        if not 1 <= number <= self.specials:
            raise ValueError(
                f"special token number {number} is outside 1..{self.specials}: a single-task vocabulary has only MASK"
            )
        return self.size - number

    def class_id(self, label):
        """Word-table row of class `label` in [0, classes)."""
        return label + self.codebook
