"""3D-VQ encoder, decoder and quantizer: equal to the official code, exact sizes, and what the options promise."""

import json
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import GOLDEN, Golden, drawn, flatten, nest, relative_error
from magvid.models import vq2d
from magvid.models.layers import GroupNorm, LayerNorm
from magvid.models.quantizers import VQ
from magvid.models.tokenizer import Tokenizer
from magvid.models.vq3d import Decoder, Encoder, conv_down, deconv_up, nearest_conv_up, pool_down

COUNTS = json.loads((GOLDEN / "param_counts.json").read_text())


def tokenizer_of(config: dict) -> Tokenizer:
    """Our tokenizer for an official `vqvae` configuration."""
    planar, multipliers = config["architecture"] == "2dcnn", tuple(config["channel_multipliers"])
    shared = dict(
        filters=config["filters"],
        multipliers=multipliers,
        temporal=tuple(config.get("temporal_downsample", (False,) * (len(multipliers) - 1))),
        norm={"GN": vq2d.FrameNorm if planar else GroupNorm, "LN": LayerNorm}[config["norm_type"]],
        activation={"swish": nn.swish, "relu": nn.relu}[config["activation_fn"]],
        padding=config.get("custom_conv_padding", "zero"),
    )
    down = conv_down if config["conv_downsample"] else pool_down
    up = deconv_up if config.get("upsample") == "deconv" else nearest_conv_up
    dim = config["embedding_dim"]
    return Tokenizer(
        (vq2d.Encoder if planar else Encoder)(**shared, blocks=config["num_enc_res_blocks"], dim=dim, down=down),
        VQ(config["codebook_size"], dim, hard_entropy=config["entropy_loss_type"] == "argmax"),
        (vq2d.Decoder if planar else Decoder)(**shared, blocks=config["num_dec_res_blocks"], up=up),
    )


def as_recorded(program: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiled without the kernels (YNN) that XLA did not have for CPUs when the numbers were recorded. How they round differs from one kind of CPU to the
    next (by 8e-4 of one gradient's norm on one with AMX), since the entropy's temperature makes 100 of each rounding of a distance.
    """
    try:
        return program.compile(compiler_options={"xla_cpu_experimental_ynn_fusion_type": ""})
    except jax.errors.JaxRuntimeError as error:  # of a later XLA, which may have given the option another name
        assert "No such compile option" in str(error)
        return program.compile()


def check_golden(golden: Golden):
    tokenizer, params, x = tokenizer_of(golden.config["vqvae"]), nest(golden.flat()), golden["x"]
    names = flatten(jax.eval_shape(tokenizer.init, jax.random.key(0), x)["params"])
    assert {k: v.shape for k, v in names.items()} == {k: v.shape for k, v in golden.flat().items()}
    apply = jax.jit(partial(tokenizer.apply, {"params": params}), static_argnames="method")

    assert relative_error(apply(x, method="encode"), golden["encoder_out"]) < 1e-4
    np.testing.assert_array_equal(apply(x, method="encode_ids"), golden["ids"])
    reconstruction, quantized = apply(x)
    assert relative_error(quantized.codes, golden["quantized"]) < 1e-5
    assert relative_error(reconstruction, golden["recon"]) < 1e-4
    assert relative_error(apply(golden["ids"], method="ids_to_video"), np.clip(golden["decode_from_ids"], 0, 1)) < 1e-4

    def loss(params):
        video, quantized = tokenizer.apply({"params": params}, x, train=True)
        l2 = jnp.mean((video - x) ** 2) if video.shape == x.shape else jnp.mean(video**2)
        return l2 + quantized.loss, (video, quantized.metrics, l2)

    (total, (video, metrics, l2)), grads = as_recorded(jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params))(params)
    assert relative_error(video, golden["train_recon"]) < 1e-4
    np.testing.assert_allclose(l2, golden["train_l2"], rtol=1e-4)
    np.testing.assert_allclose(total, golden["train_total"], rtol=1e-4)
    for ours, theirs in dict(commitment="e_latent_loss", embedding="q_latent_loss", entropy="entropy_loss").items():
        np.testing.assert_allclose(metrics[ours], golden[theirs], rtol=1e-4)
    largest = max(v for k, v in golden.flat("gradnorm:").items())
    for name, grad in flatten(grads).items():
        # The entropy's temperature of 0.01 multiplies float32 rounding of the distances by 100 before it reaches the
        # encoder.
        np.testing.assert_allclose(
            np.linalg.norm(grad), golden["gradnorm:" + name], rtol=5e-4, atol=1e-6 * largest, err_msg=name
        )
        np.testing.assert_allclose(
            np.sum(grad), golden["gradsum:" + name], rtol=2e-3, atol=1e-4 * largest, err_msg=name
        )


@pytest.mark.parametrize("name", ["vq3d_b", "vq3d_c"])
def test_golden(name):
    check_golden(Golden(name))


@pytest.mark.full
@pytest.mark.parametrize("name", ["vq3d_a", "vq3d_e"])
def test_golden_group_norm(name, shared):
    check_golden(Golden(name, shared / "golden" / "magvit"))


SIZES = {
    "vq3d_ucf101_B": dict(filters=64),
    "vq3d_ucf101_L": dict(filters=128),
    "vq3d_ucf101_H": dict(filters=128, blocks=4, dim=512, size=4096),
    "vq3d_bair_B": dict(filters=64, multipliers=(1, 2, 4), temporal=(True, True)),
    "vq3d_bair_L": dict(filters=128, multipliers=(1, 2, 4), temporal=(True, True)),
}


def sized(dim=256, size=1024, **shared) -> Tokenizer:
    return Tokenizer(Encoder(dim=dim, **shared), VQ(size, dim), Decoder(**shared))


def check_counts(tokenizer: Tokenizer, name: str):
    """The parts of `tokenizer` have as many parameters as the official model `name`."""
    params = jax.eval_shape(tokenizer.init, jax.random.key(0), jnp.zeros((1, 16, 64, 64, 3)))["params"]
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    ours = {"generator": count(params), **{part: count(params[part]) for part in ("encoder", "decoder", "quantizer")}}
    assert ours == {k: v for k, v in COUNTS[name].items() if k != "discriminator"}


@pytest.mark.parametrize("name", SIZES)
def test_full_sizes_have_the_official_number_of_parameters(name):
    check_counts(sized(**SIZES[name]), name)


def test_full_size_has_the_official_names_and_shapes():
    section = (GOLDEN / "param_trees.txt").read_text().split("## vq3d_ucf101_B/generator\n")[1].split("\n## ")[0]
    official = dict(line.split("\t") for line in section.strip().splitlines() if "\t" in line)
    params = jax.eval_shape(sized().init, jax.random.key(0), jnp.zeros((1, 16, 128, 128, 3)))["params"]
    assert {k: str(v.shape) for k, v in flatten(params).items()} == official


def small(**options) -> Tokenizer:
    shared = (
        dict(filters=4, multipliers=(1, 2), temporal=(True,), blocks=1, norm=partial(GroupNorm, groups=2)) | options
    )
    return Tokenizer(Encoder(dim=5, **shared), VQ(7, 5), Decoder(**shared))


@pytest.mark.parametrize("padding", ["zero", "reflect", "edge", "wrap", "symmetric", "reflect_odd", "symmetric_odd"])
def test_every_padding_keeps_the_shape_and_sees_the_border(padding):
    tokenizer, x = small(padding=padding), jnp.asarray(np.random.default_rng(0).random((2, 4, 8, 12, 3)), jnp.float32)
    variables = drawn(tokenizer.init, jax.random.key(0), x)
    encode = lambda t: jax.jit(partial(t.apply, method="encode"))(variables, x)
    z, zero = encode(tokenizer), encode(small(padding="zero"))
    assert z.shape == (2, 2, 4, 6, 5)
    assert jax.eval_shape(partial(tokenizer.apply, method="decode"), variables, z).shape == x.shape
    assert (padding == "zero") == bool(jnp.allclose(z, zero, atol=1e-6))


def test_blocks_per_level_and_patches():
    tokenizer, x = small(blocks=(0, 2, 1), patch=(2, 2, 1)), jnp.zeros((2, 4, 8, 12, 3))
    params = jax.eval_shape(tokenizer.init, jax.random.key(0), x)["params"]
    assert params["encoder"]["Conv_0"]["kernel"].shape == (3, 3, 3, 12, 4)
    assert sum(name.startswith("ResBlock") for name in params["encoder"]) == 3
    assert jax.eval_shape(tokenizer.apply, {"params": params}, x)[0].shape == x.shape
    with pytest.raises(ValueError, match="cannot be cut into patches of 2x2x1"):
        jax.eval_shape(tokenizer.apply, {"params": params}, x[:, :3])


def test_remat_changes_neither_names_nor_numbers():
    x = jnp.asarray(np.random.default_rng(0).random((2, 4, 8, 12, 3)), jnp.float32)
    variables = drawn(small().init, jax.random.key(0), x)
    gradient = lambda t: jax.jit(jax.grad(lambda v: jnp.sum(t.apply(v, x, train=True)[0] ** 2)))(variables)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), gradient(small()), gradient(small(remat=2)))


def test_wrong_options_are_named():
    x = jnp.zeros((1, 4, 8, 8, 3))
    with pytest.raises(ValueError, match="one flag per change of level: 1 for 2 multipliers"):
        jax.eval_shape(small(temporal=(True, False)).init, jax.random.key(0), x)
    with pytest.raises(ValueError, match="needs 3 numbers"):
        jax.eval_shape(small(blocks=(1, 1)).init, jax.random.key(0), x)
    with pytest.raises(ValueError, match="multiple of 3 channels, got 4"):
        jax.eval_shape(small(norm=partial(GroupNorm, groups=3)).init, jax.random.key(0), x)
    with pytest.raises(ValueError, match="pads with zeros only"):
        decoder = Decoder(4, (1, 2), (True,), 1, norm=LayerNorm, up=deconv_up, padding="reflect")
        jax.eval_shape(decoder.init, jax.random.key(0), jnp.zeros((1, 2, 4, 4, 5)))
