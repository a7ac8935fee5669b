"""Parameters that are trained beside a frozen network: those that it did not have (adapters), and changes of some that it had.

Both lie in a group of their own, so that a checkpoint holds them alone and the network stays the file that it was. A changed
parameter is W + D with D at first zero: the network begins as its base, bit for bit.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Key

Params = dict


@dataclasses.dataclass(frozen=True)
class Grafts:
    """What an objective is given as `adapters`. Regexes are over the '/'-joined names of the network's parameters:

    new: those that the base does not have; they are taken as the network initialises them; "": none.
    changed: those of the base to which a trained difference is added; "": none.
    widened: kernels that read more channels than the base's, `more` of them, at the end; the new part begins at zero; "": none.
    scale: of what is new in a sense that holds for all kinds: differences are multiplied by it, and so are the last
    projections (`last`) of adapters, whose outputs are linear in them. 0 is the base, unless layers of the base are shown tokens that it was not
    trained on (AID with mcond=replace: what is new is read beside the image's token, in one softmax).
    """

    new: str
    changed: str = ""
    widened: str = ""
    more: int = 1
    scale: float = 1.0
    last: str = r"up/(kernel|bias)$|added_scale$"

    def split(self, params: Params, key: Key[Array, ""]) -> tuple[Params, Params]:
        """(the base's parameters, those of this group) of the network's; arrays or shapes. ValueError where a regex finds nothing."""
        base, added = {}, {}
        flat = flatten_dict(params, sep="/")
        for what in ("new", "changed", "widened"):
            if (regex := getattr(self, what)) and not any(re.search(regex, name) for name in flat):
                raise ValueError(f'{what}="{regex}" is found in the name of no parameter; there are {", ".join(list(flat)[:8])}, ...')
        for name, x in flat.items():
            if self.new and re.search(self.new, name):
                added[name] = x
                continue
            if self.widened and re.search(self.widened, name):
                base[name] = x[..., : x.shape[-2] - self.more, :]
                added[name] = jnp.zeros((*x.shape[:-2], self.more, x.shape[-1]), x.dtype)
                continue
            base[name] = x
            if self.changed and re.search(self.changed, name):
                added[name] = jnp.zeros(x.shape, x.dtype)
        return unflatten_dict(base, sep="/"), unflatten_dict(added, sep="/")

    def merge(self, params: Params, added: Params) -> Params:
        """The network's parameters. Differences are added in float32. ValueError for what does not fit `params`."""
        flat = flatten_dict(params, sep="/")
        for name, x in flatten_dict(added, sep="/").items():
            there = flat.get(name)
            if there is None:
                scaled = self.scale != 1 and re.search(self.last, name)
                flat[name] = x * jnp.asarray(self.scale, x.dtype) if scaled else x
            elif self.widened and re.search(self.widened, name):
                if (*there.shape[:-2], there.shape[-1]) != (*x.shape[:-2], x.shape[-1]):
                    raise ValueError(_misfit(name, x, there))
                wide = jnp.promote_types(there.dtype, x.dtype)
                flat[name] = jnp.concatenate([there.astype(wide), self.scale * x.astype(wide)], axis=-2)
            elif there.shape != x.shape:
                raise ValueError(_misfit(name, x, there))
            else:
                wide = jnp.promote_types(there.dtype, x.dtype)
                flat[name] = (there.astype(jnp.float32) + self.scale * x.astype(jnp.float32)).astype(wide)
        return unflatten_dict(flat, sep="/")


def _misfit(name: str, x: Array, there: Array) -> str:
    return f"the adapters' {name} is {tuple(x.shape)} and the network's {tuple(there.shape)}: they belong to another network"


def average(parts: Sequence[Mapping], weights: Sequence[float]) -> Params:
    """The weighted sum of groups of one form, such as adapters that were trained from one beginning (Wortsman et al., ICML 2022,
    "model soups"). ValueError where they do not have the same parameters.
    """
    flats = [flatten_dict(part, sep="/") for part in parts]
    shapes = [{name: x.shape for name, x in flat.items()} for flat in flats]
    for other in shapes[1:]:
        if wrong := sorted(n for n in {**shapes[0], **other} if shapes[0].get(n) != other.get(n)):
            a, b = (s.get(wrong[0], "missing") for s in (shapes[0], other))
            raise ValueError(f"adapters of two forms cannot be combined: {wrong[0]} is {a} and {b}")
    return unflatten_dict({name: sum(w * flat[name] for w, flat in zip(weights, flats, strict=True)) for name in flats[0]}, sep="/")
