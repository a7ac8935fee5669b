"""Attention: one function in the form that suits the platform, and the module over space, time or tokens.

The forms: matrix products (wherever nothing else fits), one head after the other (CPU, long sequences), cuDNN's flash
attention (CUDA, 16 bit), splash attention (TPU, long sequences). A kernel never holds the n x m probabilities.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from magvid.models.layers import Dense, gelu, lecun_normal
from magvid.models.platform import per_platform
from magvid.sharding import DATA_AXES
from magvid.types import Condition

CUDNN_BATCH = 2**16  # sequences per call of the kernel: the limit of one axis of a CUDA grid
SPLASH_LOGITS = 2**20  # n * m from which the TPU's kernel pays: below, XLA's products fit the on-chip memory
HEAD_LOGITS = 2**16  # n * m from which a CPU takes the heads one by one: below, all logits stay in its cache
LANES = 128  # a TPU kernel takes sequences in multiples of this


# One function -------------------------------------------------------------------------------------------------------


def attention(
    q: Float[Array, "b n heads e"],
    k: Float[Array, "b m heads e"],
    v: Float[Array, "b m heads e"],
    dropout: Callable | None = None,
    allowed: Bool[Array, "#b #heads n m"] | None = None,
) -> Float[Array, "b n heads e"]:
    """Softmax attention; scale 1/sqrt(e); `dropout` maps the probabilities (b heads n m); `allowed`: which tokens m
    each token n may read, all where None. Softmax in float32.

    With `dropout` or `allowed` always by matrix products. cuDNN takes 16-bit arrays with e <= 128, a multiple of 8.
    """
    if dropout is not None or allowed is not None:
        return _products(q, k, v, dropout, allowed)
    if k.shape[1] == 1:  # the softmax of one logit is 1
        return jnp.broadcast_to(v, q.shape)
    kernels = {}
    e = q.shape[-1]
    if q.shape[1] * k.shape[1] >= HEAD_LOGITS and q.shape[2] > 1:
        kernels["cpu"] = _by_head
    if q.dtype in (jnp.bfloat16, jnp.float16) and e % 8 == 0 and e <= 128 and q.shape[0] < CUDNN_BATCH:
        kernels["cuda"] = _cudnn
    if q.shape[1] * k.shape[1] >= SPLASH_LOGITS and e <= 256:
        kernels["tpu"] = _splash_on_mesh
    return per_platform(_products, **kernels)(q, k, v) if kernels else _products(q, k, v)


def _products(q: Array, k: Array, v: Array, dropout: Callable | None = None, allowed: Array | None = None) -> Array:
    """Matrix products over (b heads): the fastest form measured on CPU, and one XLA fuses on GPU and TPU."""
    q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))
    logits = (q * q.shape[-1] ** -0.5) @ k.swapaxes(-1, -2)
    logits = logits.astype(jnp.float32)
    if allowed is not None:
        logits = jnp.where(allowed, logits, jnp.finfo(jnp.float32).min)
    probabilities = jax.nn.softmax(logits, axis=-1).astype(q.dtype)
    if dropout is not None:
        probabilities = dropout(probabilities)
    return (probabilities @ v).swapaxes(1, 2)


def _by_head(q: Array, k: Array, v: Array) -> Array:
    """One head after the other, also in the backward pass, which computes the probabilities again: up to twice as fast on CPU."""
    one = jax.checkpoint(lambda head: _products(*(x[:, :, None] for x in head))[:, :, 0])
    return jnp.moveaxis(jax.lax.map(one, tuple(jnp.moveaxis(x, 2, 0) for x in (q, k, v))), 0, 2)


def _cudnn(q: Array, k: Array, v: Array) -> Array:
    """cuDNN's kernel. For a gradient jax wants even lengths: odd ones get one more token, which is not read."""
    n, m = q.shape[1], k.shape[1]
    even = lambda x: jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))
    lengths = jnp.full(len(k), m, jnp.int32) if m % 2 else None
    kernel = partial(jax.nn.dot_product_attention, key_value_seq_lengths=lengths, implementation="cudnn")
    try:
        return kernel(even(q), even(k), even(v))[:, :n]
    except RuntimeError as error:
        # Every form is traced on every host. One without CUDA's libraries cannot run this one, nor compile for CUDA.
        if "cuDNN is not detected" not in str(error):
            raise
        return _products(q, k, v)


def _splash(q: Array, k: Array, v: Array, interpret: bool = False) -> Array:
    """Pallas' kernel; sequences are padded to a multiple of 128 and the padding reads only itself."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    n, m, heads = q.shape[1], k.shape[1], q.shape[2]
    pad = lambda x: jnp.pad(x, ((0, 0), (0, -x.shape[1] % LANES), (0, 0), (0, 0))).swapaxes(1, 2)
    scale = jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    q, k, v = pad(q * scale), pad(k), pad(v)
    size = lambda length: max(s for s in (512, 256, 128) if length % s == 0)
    bq, bk = size(q.shape[2]), size(k.shape[2])
    blocks = kernels.BlockSizes(
        block_q=bq, block_kv=bk, block_kv_compute=bk,
        block_q_dkv=bq, block_kv_dkv=bk, block_kv_dkv_compute=bk, block_q_dq=bq, block_kv_dq=bk,
    )  # fmt: skip
    mask = masks.MultiHeadMask([masks.FullMask((q.shape[2], k.shape[2]))] * heads)
    kernel = kernels.make_splash_mha(mask, block_sizes=blocks, head_shards=1, q_seq_shards=1, interpret=interpret)
    segments = None
    if (n, m) != (q.shape[2], k.shape[2]):
        real = lambda length, whole: (jnp.arange(whole) >= length).astype(jnp.int32)
        segments = kernels.SegmentIds(real(n, q.shape[2]), real(m, k.shape[2]))
    y = jax.vmap(partial(kernel, segment_ids=segments))(q, k, v)
    return y.swapaxes(1, 2)[:, :n]


def _splash_on_mesh(q: Array, k: Array, v: Array, interpret: bool = False) -> Array:
    """On the mesh of `jax.set_mesh`, each device takes its examples and heads: XLA cannot divide a kernel by itself."""
    kernel = partial(_splash, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or math.prod(mesh.shape.values()) == 1:
        return kernel(q, k, v)
    data = tuple(a for a in DATA_AXES if a in mesh.shape)
    if q.shape[0] % math.prod(mesh.shape[a] for a in data):
        data = ()
    model = "model" if q.shape[2] % mesh.shape.get("model", q.shape[2] + 1) == 0 else None
    spec = PartitionSpec(data or None, None, model, None)
    return jax.shard_map(kernel, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(q, k, v)


# Modules ------------------------------------------------------------------------------------------------------------


def sequences(x: Float[Array, "b t h w c"], over: str) -> Float[Array, "b s n c"]:
    """Each frame's pixels (`over` "space") or each pixel's frames ("time") as sequences of n tokens."""
    x = x.reshape(*x.shape[:2], -1, x.shape[-1])
    return {"space": x, "time": x.swapaxes(1, 2)}[over]


def read_tokens(
    condition: Condition, names: Sequence[str]
) -> tuple[Float[Array, "b t m d"], Bool[Array, "b m"] | None]:
    """The named tokens of a condition one after the other, and which of them count (None: all)."""
    if missing := [n for n in names if n not in condition.tokens]:
        has = ", ".join(condition.tokens) or "none"
        raise ValueError(
            f"attention reads the tokens {', '.join(names)}, and the condition has {has}: "
            f"give {', '.join(missing)}, or name other tokens in the model's config"
        )
    parts = [condition.tokens[n] for n in names]
    if len({p.shape[-1] for p in parts}) > 1:
        widths = ", ".join(f"{n} {p.shape[-1]}" for n, p in zip(names, parts))
        raise ValueError(f"attention reads tokens of one width, and the condition's are {widths} wide: give what makes them the same width")
    frames = max(p.shape[1] for p in parts)
    parts = [jnp.broadcast_to(p, (p.shape[0], frames, *p.shape[2:])) for p in parts]
    mask = None
    if any(n in condition.masks for n in names):
        everything = lambda p: jnp.ones((p.shape[0], p.shape[2]), bool)
        mask = jnp.concatenate([condition.masks.get(n, everything(p)) for n, p in zip(names, parts)], axis=1)
    return jnp.concatenate(parts, axis=2), mask


def read_scalars(condition: Condition, names: Sequence[str]) -> Float[Array, "b n"]:
    """The named scalars of a condition, side by side."""
    if missing := [n for n in names if n not in condition.scalars]:
        raise ValueError(f"the condition lacks the scalars {', '.join(missing)}: this model reads {', '.join(names)}")
    return jnp.stack([condition.scalars[n] for n in names], axis=-1)


class Attention(nn.Module):
    """Multi-head attention over each frame's pixels (`over` "space") or each pixel's frames ("time").

    Keys and values are of the video itself, or of the condition's `tokens`, in this order; over time, of its first
    frame's (SVD). Tokens that are the same in every frame are projected once. `zero`: the last projection begins at
    zero.
    """

    heads: int
    tokens: Sequence[str] = ()
    over: str = "space"
    zero: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], condition: Condition | None = None) -> Float[Array, "b t h w c"]:
        if x.shape[-1] % self.heads:
            raise ValueError(f"{x.shape[-1]} channels cannot be divided between {self.heads} heads")
        y = self.mix(sequences(x, self.over), condition)
        kernel_init = nn.initializers.zeros if self.zero else lecun_normal
        y = Dense(x.shape[-1], dtype=self.dtype, kernel_init=kernel_init, name="to_out")(y)
        return (y if self.over == "space" else y.swapaxes(1, 2)).reshape(x.shape)

    def mix(self, x: Float[Array, "b s n c"], condition: Condition | None) -> Float[Array, "b s n c"]:
        """The heads' outputs, before the last projection."""
        context, mask = self.context(condition, self.tokens) if self.tokens else (x, None)
        split = partial(self.split, width=x.shape[-1])
        return self.attend(split("to_q", x), split("to_k", context), split("to_v", context), mask)

    def context(self, condition: Condition, names: Sequence[str]) -> tuple[Array, Array | None]:
        tokens, mask = read_tokens(condition, names)
        return (tokens[:, :1] if self.over == "time" else tokens), mask

    def split(self, name: str, x: Float[Array, "b s m d"], width: int) -> Float[Array, "b s m heads e"]:
        y = Dense(width, use_bias=False, dtype=self.dtype, name=name)(x)
        return y.reshape(*y.shape[:-1], self.heads, -1)

    def attend(
        self,
        q: Float[Array, "b s n heads e"],
        k: Float[Array, "b s2 m heads e"],
        v: Float[Array, "b s2 m heads e"],
        mask: Bool[Array, "b m"] | None = None,
    ) -> Float[Array, "b s n c"]:
        """Each of s sequences reads its own keys (s2 = s), or all read the same (s2 = 1)."""
        b, s, n, *_ = q.shape
        rows = b * k.shape[1]
        q, k, v = (a.reshape(rows, -1, *a.shape[3:]) for a in (q, k, v))
        if mask is not None:
            allowed = jnp.repeat(mask, rows // b, axis=0)[:, None, None]
            mask = jnp.broadcast_to(allowed, (rows, 1, q.shape[1], k.shape[1]))
        return attention(q, k, v, allowed=mask).reshape(b, s, n, -1)


class FeedForward(nn.Module):
    """GEGLU: linear to 2 x 4c, a * gelu(b) with the exact gelu, linear back to c (Shazeer, 2020)."""

    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        c = x.shape[-1]
        value, gate = jnp.split(Dense(8 * c, dtype=self.dtype, name="proj")(x), 2, axis=-1)
        return Dense(c, dtype=self.dtype, name="out")(value * gelu(gate))
