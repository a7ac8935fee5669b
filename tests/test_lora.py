"""LoRA: begins as the base, adds a product of two matrices, is saved apart and merged."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import flatten
from magvid import lora
from magvid.checkpoints import Checkpoints
from magvid.state import TrainState

KEY = jax.random.key(0)


class Net(nn.Module):
    """A dense layer and a convolution."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 1, 3), name="conv")(x)
        return nn.Dense(4, name="to_q")(nn.LayerNorm(name="norm")(x))


X = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 3)).astype(np.float32)
PARAMS = Net().init(KEY, X)["params"]


def trained(regex: str, rank: int = 2) -> dict:
    """As after some training: b is not zero."""
    added = lora.init(PARAMS, regex, rank, KEY)
    return jax.tree.map(lambda x: x + 0.1 * np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape), added)


def test_the_base_at_the_start():
    added = lora.init(PARAMS, "conv|to_q", 2, KEY)
    shapes = {n: x.shape for n, x in flatten(added).items()}
    assert shapes == {
        "conv/kernel/a": (3, 1, 3, 3, 2),
        "conv/kernel/b": (2, 6),
        "to_q/kernel/a": (6, 2),
        "to_q/kernel/b": (2, 4),
    }
    assert not added["conv"]["kernel"]["b"].any()
    a = added["conv"]["kernel"]["a"]
    assert np.abs(a).max() <= 1 / np.sqrt(27) and a.std() == pytest.approx(1 / np.sqrt(3 * 27), rel=0.2)
    merged = lora.merge(PARAMS, added, 8.0)
    jax.tree.map(np.testing.assert_array_equal, merged, PARAMS)
    np.testing.assert_array_equal(Net().apply({"params": merged}, X), Net().apply({"params": PARAMS}, X))


def test_what_is_added():
    """A convolution with a, then a pointwise one with b, beside the base's: as PEFT computes it."""
    added = trained("conv")
    merged = lora.merge(PARAMS, added, 0.5)
    assert merged["to_q"]["kernel"] is PARAMS["to_q"]["kernel"]
    a, b = added["conv"]["kernel"]["a"], added["conv"]["kernel"]["b"]
    conv = lambda kernel: nn.Conv(kernel.shape[-1], (3, 1, 3), use_bias=False).apply({"params": {"kernel": kernel}}, X)
    np.testing.assert_allclose(
        conv(merged["conv"]["kernel"]), conv(PARAMS["conv"]["kernel"]) + 0.5 * conv(a) @ b, atol=1e-5
    )
    dense = trained("to_q")
    kernel = lora.merge(PARAMS, dense)["to_q"]["kernel"]
    added = dense["to_q"]["kernel"]
    np.testing.assert_allclose(kernel, PARAMS["to_q"]["kernel"] + added["a"] @ added["b"], atol=1e-6)


def test_the_scale_is_alpha_over_rank():
    added = trained("to_q", rank=4)
    for alpha, scale in ((None, 1.0), (4.0, 1.0), (8.0, 2.0)):
        found = lora.LoRA("to_q", rank=4, alpha=alpha).merge(PARAMS, added)
        jax.tree.map(np.testing.assert_array_equal, found, lora.merge(PARAMS, added, scale))


def test_shapes_suffice_and_bfloat16_stays():
    shapes = jax.eval_shape(lambda: PARAMS)
    jax.tree.map(np.testing.assert_array_equal, lora.init(shapes, "conv", 2, KEY), lora.init(PARAMS, "conv", 2, KEY))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (PARAMS, trained("conv")))
    assert lora.merge(*half)["conv"]["kernel"].dtype == jnp.bfloat16
    assert lora.merge(half[0], trained("conv"))["conv"]["kernel"].dtype == jnp.float32  # what is trained is not rounded


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match=r'"attn" is found in the name of no kernel.*conv/kernel, to_q/kernel'):
        lora.init(PARAMS, "attn", 2, KEY)
    with pytest.raises(ValueError, match="norm"):
        lora.init(PARAMS, "norm", 2, KEY)  # scale and bias are no kernels
    with pytest.raises(ValueError, match="rank of at least 1, got 0"):
        lora.init(PARAMS, "conv", 0, KEY)
    other = {"to_q": {"kernel": jnp.zeros((6, 5))}}
    with pytest.raises(ValueError, match=r"to_q/kernel is of a kernel \(6, 4\), which is \(6, 5\) here"):
        lora.merge(other, trained("to_q"))
    with pytest.raises(ValueError, match="conv/kernel .* absent"):
        lora.merge(other, trained("conv"))


def test_saved_apart_and_merged_again(tmp_path):
    added = trained("conv|to_q")
    state = TrainState(
        step=jnp.asarray(1), params={"lora": added}, frozen={"network": PARAMS}, opt={}, ema={}, extra={}, key=KEY
    )
    checkpoints = Checkpoints(tmp_path / "checkpoints", write=True)
    checkpoints.save(1, state, {})
    checkpoints.wait()
    found = checkpoints.group(1, "params", "lora")
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, lora.merge(PARAMS, found), lora.merge(PARAMS, added))
