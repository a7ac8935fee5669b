"""LoRA (Hu et al., 2021) as pure functions on parameters: kernels chosen by a regex get a product of two thin matrices.

A kernel (..., i, o), of a dense layer or of a convolution, becomes kernel + scale a b with a (..., i, rank) and b (rank,
o). b begins at zero, so that the merged network is the base, bit for bit, until it is trained.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jaxtyping import Array, Key

Params = dict


def init(params: Params, regex: str, rank: int, key: Key[Array, ""]) -> Params:
    """{...: {"kernel": {"a", "b"}}} for each kernel whose '/'-joined name `regex` is found in.

    `params` may be shapes. a is uniform with variance 1 / (3 fan-in), as PEFT has it. ValueError where nothing matches.
    """
    if rank < 1:
        raise ValueError(f"LoRA needs a rank of at least 1, got {rank}")
    flat = flatten_dict(params, sep="/")
    chosen = {n: x.shape for n, x in flat.items() if n.split("/")[-1] == "kernel" and re.search(regex, n)}
    if not chosen:
        some = ", ".join([n for n in flat if n.endswith("kernel")][:8])
        raise ValueError(f'LoRA\'s regex "{regex}" is found in the name of no kernel; there are {some}, ...')
    make = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    keys = jax.random.split(key, len(chosen))
    found = {}
    for k, (name, shape) in zip(keys, chosen.items(), strict=True):
        found[f"{name}/a"] = make(k, (*shape[:-1], rank), jnp.float32)
        found[f"{name}/b"] = jnp.zeros((rank, shape[-1]), jnp.float32)
    return unflatten_dict(found, sep="/")


def merge(params: Params, lora: Params, scale: float = 1.0) -> Params:
    """`params` with `scale` a b added to the kernels that `lora` has; the others are the same arrays.

    Added in float32; a kernel of bfloat16 comes out in the wider type of the two. ValueError for one that does not fit.
    """
    flat, parts = flatten_dict(params, sep="/"), flatten_dict(lora, sep="/")
    for name in dict.fromkeys(n.rpartition("/")[0] for n in parts):
        a, b = parts[f"{name}/a"], parts[f"{name}/b"]
        shape = (*a.shape[:-1], b.shape[-1])
        if name not in flat or flat[name].shape != shape:
            there = flat[name].shape if name in flat else "absent"
            raise ValueError(f"LoRA's {name} is of a kernel {shape}, which is {there} here: it belongs to another network")
        a32, b32, kernel = (x.astype(jnp.float32) for x in (a, b, flat[name]))
        delta = jnp.tensordot(a32, b32, 1, precision=lax.Precision.HIGHEST)
        flat[name] = (kernel + scale * delta).astype(jnp.promote_types(flat[name].dtype, a.dtype))
    return unflatten_dict(flat, sep="/")


@dataclasses.dataclass(frozen=True)
class LoRA:
    """What an objective is given: `regex` chooses the kernels, the product is scaled by `alpha` / `rank` (`alpha` None:
    1).
    """

    regex: str
    rank: int = 16
    alpha: float | None = None

    def split(self, params: Params, key: Key[Array, ""]) -> tuple[Params, Params]:
        """(the network's parameters, what is added to them)."""
        return params, init(params, self.regex, self.rank, key)

    def merge(self, params: Params, lora: Params) -> Params:
        return merge(params, lora, 1.0 if self.alpha is None else self.alpha / self.rank)
