"""AID's DQFormer (Xing et al., ICCV 2025, section 3.3): instruction, predicted states and given frames -> tokens for each frame.

The *upper* branch lets the words of the instruction look at the given frames; what they find is the same for every frame. The *lower*
branch has queries of its own for every frame, which read the instruction (what of it belongs to this frame) and then the
predicted states. Both together are the multimodal condition ("MCondition"), other tokens for every frame.

The paper gives the formulas of the attentions; that each is a pre-norm residual sub-layer, followed by a feed-forward, and all
sizes are our choice.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from magvid.models.attention import FeedForward, attention
from magvid.models.conditioners import Keep, first_frames, kept, read_texts, told
from magvid.models.layers import Dense, normal, sinusoid
from magvid.types import Condition

LayerNorm = partial(nn.LayerNorm, epsilon=1e-5)
BRANCHES = ("upper", "lower")


class Read(nn.Module):
    """Multi-head attention of x to `context`, as wide as x; q, k, v without biases."""

    heads: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], context: Float[Array, "b m d"]) -> Float[Array, "b n c"]:
        dense = partial(Dense, x.shape[-1], dtype=self.dtype)
        heads = lambda y: y.reshape(*y.shape[:2], self.heads, -1)
        k, v = (heads(dense(use_bias=False, name=f"to_{name}")(context)) for name in "kv")
        y = attention(heads(dense(use_bias=False, name="to_q")(x)), k, v)
        return dense(name="to_out")(y.reshape(x.shape))


class Branch(nn.Module):
    """`depth` times: x + read(LN x) from each of what there is to be read, then + feed-forward(LN x). In `reads` a context is
    (b m d), or None for x itself.
    """

    heads: int
    depth: int = 1
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], reads: Mapping[str, Float[Array, "b m d"] | None]) -> Float[Array, "b n c"]:
        norm = partial(LayerNorm, dtype=self.dtype)
        seen = {name: None if y is None else norm(name=f"{name}_norm")(y) for name, y in reads.items()}
        for i in range(self.depth):
            for name, context in seen.items():
                y = norm(name=f"{name}_{i}_norm")(x)
                x = x + Read(self.heads, self.dtype, name=f"{name}_{i}")(y, y if context is None else context)
            x = x + FeedForward(self.dtype, name=f"ff_{i}")(norm(name=f"ff_{i}_norm")(x))
        return x


class DQFormer(nn.Module):
    """`frames`, `queries`: of the lower branch, so many tokens for each of so many frames. `branches`: which there are (the paper's
    ablation). `states`: how many texts there are, each of which has an embedding.
    """

    width: int = 1024
    frames: int = 16
    queries: int = 77
    heads: int = 16
    depth: int = 1
    states: int = 4
    branches: Sequence[str] = BRANCHES
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        instruction: Float[Array, "b n d"],
        states: Float[Array, "b s m d"],
        seen: Float[Array, "b k e"],
    ) -> Float[Array, "b t q c"]:
        """seen: the tokens of all given frames, one after the other. q = n of the upper branch + queries of the lower one."""
        if not self.branches or set(self.branches) - set(BRANCHES):
            raise ValueError(f"branches={tuple(self.branches)}: a DQFormer has {' and '.join(BRANCHES)}, at least one of them")
        if states.shape[1] != self.states:
            raise ValueError(f"{states.shape[1]} states are given, and this DQFormer is told {self.states}: its `states` is their number (count= of configs/aid.py)")
        b, make = len(instruction), partial(Branch, self.heads, self.depth, self.dtype)
        project = lambda name, x: x if x.shape[-1] == self.width else Dense(self.width, dtype=self.dtype, name=name)(x)
        instruction = project("text_in", instruction)
        parts = []
        if "upper" in self.branches:
            found = make(name="upper")(instruction, {"own": None, "seen": seen})
            parts.append(jnp.broadcast_to(found[:, None], (b, self.frames, *found.shape[1:])))
        if "lower" in self.branches:
            query = self.param("query", normal(0.02), (self.frames, self.queries, self.width))
            place = sinusoid(jnp.arange(self.frames, dtype=jnp.float32), self.width)[:, None]
            which = self.param("state_embedding", normal(0.02), (self.states, 1, self.width))
            states = project("state_in", states)
            states = (states + which.astype(states.dtype)).reshape(b, -1, self.width)
            x = (query + place).reshape(1, -1, self.width).astype(instruction.dtype)
            x = make(name="lower")(jnp.broadcast_to(x, (b, *x.shape[1:])), {"instruction": instruction, "states": states})
            parts.append(x.reshape(b, self.frames, self.queries, self.width))
        return LayerNorm(dtype=self.dtype, name="norm")(jnp.concatenate(parts, axis=2))


class MCondition(nn.Module):
    """The conditioner: `text` and `vision` towers (models.clip), frozen, and what the DQFormer makes of them.

    Reads batch["text_ids"] (b n), the instruction; batch["state_ids"] (b s n), the predicted states, or with `repeat` = s the
    instruction so many times (the paper's ablation without predictions); and the first `given` frames. Nulls: the empty text,
    batch["null_ids"] (b n), in place of both texts; zeros in place of what is seen. `prepare`: images (b h w 3) in [0, 1] -> what the tower reads.
    """

    text: nn.Module
    vision: nn.Module
    dqformer: nn.Module
    prepare: Callable[[Array], Array]
    given: int = 1
    repeat: int = 0
    token: str = "mcondition"

    names, towers, made_by = ("text", "image"), ("text", "vision"), ("prepare", "given", "repeat")

    @property
    def entries(self) -> tuple[str, ...]:
        return tuple(f"{self.token}_{tower}" for tower in self.towers)

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("text_ids", "null_ids", *(() if self.repeat else ("state_ids",)))

    @property
    def reads(self) -> tuple[str, ...]:
        return ("text", "image", *(["video"] if self.given > 1 else []))

    def features(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Of the empty text, the instruction and the states, which `repeat` leaves out (b s n c); and of the given frames (b n c)."""
        instruction, states = self.ids(batch, {"text": jnp.asarray(True)})
        null = jnp.broadcast_to(jnp.asarray(batch["null_ids"]), instruction.shape)
        texts = jnp.concatenate([null[:, None], instruction[:, None], *([] if self.repeat else [states])], axis=1)
        return dict(zip(self.entries, (read_texts(self.text, texts), self.see(batch)), strict=True))

    def __call__(self, batch: Mapping[str, Array], keep: Keep) -> Condition:
        texts, seen = (told(batch, name, tower) for name, tower in zip(self.entries, (self.text, self.vision), strict=True))
        if texts is None:
            instruction, states = self.ids(batch, keep)
            texts = read_texts(self.text, jnp.concatenate([instruction[:, None], states], axis=1))
        else:
            texts = jnp.where(kept(keep, "text", texts), texts, texts[:, :1])[:, 1:]
            texts = jnp.concatenate([texts, *[texts[:, :1]] * self.repeat], axis=1)
        seen = self.see(batch) if seen is None else seen
        seen = jnp.where(kept(keep, "image", seen), seen, 0)
        return Condition(tokens={self.token: self.dqformer(texts[:, 0], texts[:, 1:], seen)})

    def see(self, batch: Mapping[str, Array]) -> Float[Array, "b n c"]:
        """The tokens of all given frames, one after the other."""
        frames = first_frames(batch, self.given)
        seen = self.vision(self.prepare(frames.reshape(-1, *frames.shape[2:]))).tokens
        return seen.reshape(len(frames), -1, seen.shape[-1])

    def ids(self, batch: Mapping[str, Array], keep: Keep) -> tuple[Array, Array]:
        """Of the instruction and of the states, the null where they are hidden."""
        needs = ("text_ids", *(() if self.repeat else ("state_ids",)), *(("null_ids",) if "text" in keep else ()))
        if missing := [name for name in needs if name not in batch]:
            raise ValueError(
                f"the instruction and its predicted states are told: give {', '.join(missing)} beside {sorted(batch)}; states come from a "
                "data set, from tools/predict_states.py, or with `repeat` from the instruction itself"
            )
        instruction = jnp.asarray(batch["text_ids"])
        states = jnp.repeat(instruction[:, None], self.repeat, axis=1) if self.repeat else jnp.asarray(batch["state_ids"])
        if "text" in keep:
            null = jnp.asarray(batch["null_ids"], instruction.dtype)
            instruction = jnp.where(kept(keep, "text", instruction), instruction, null)
            states = jnp.where(kept(keep, "text", states), states, null[:, None])
        return instruction, states
