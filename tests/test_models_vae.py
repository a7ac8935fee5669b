"""The autoencoders equal diffusers' (outputs and gradients), have the published sizes, and keep what they promise about
memory.
"""

import dataclasses
import functools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.vaes import VAES
from helpers import flatten, nest, relative_error
from helpers_diffusion import FOLDER, golden_input, golden_weight
from magvid.build import build
from magvid.models.vae import AutoencoderKL, Posterior, TemporalAutoencoderKL, in_chunks, in_tiles
from tools import convert_vae
from tools.rules import check, invert, rename

CLASSES = dict(vae=AutoencoderKL, tvae=TemporalAutoencoderKL)
SMALL = dict(channels=(8, 16), layers=1, latent=3, groups=4)
VIDEO = np.random.default_rng(0).uniform(-1, 1, (2, 4, 12, 20, 3)).astype(np.float32)
LATENTS = np.random.default_rng(1).standard_normal((2, 4, 6, 10, 3)).astype(np.float32)


def torch_shapes(module) -> dict[str, tuple[int, ...]]:
    """By PyTorch's names, without an array."""
    blank = {name: np.broadcast_to(np.float32(0), s) for name, s in convert_vae.shapes(module).items()}
    return {name: a.shape for name, a in rename(blank, invert(convert_vae.RULES)).items()}


def weights(module) -> dict:
    return {"params": nest(rename({n: golden_weight(n, s) for n, s in torch_shapes(module).items()}, convert_vae.RULES))}


# Compilation is most of what these tests cost.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@functools.cache
def compiled(module, method):
    return jax.jit(partial(module.apply, method=method), compiler_options=QUICK)


def apply(module, params, x, method):
    return compiled(module, method)(params, x)


# Numbers ------------------------------------------------------------------------------------------------------------


def check_golden(name: str, golden, pixels: slice):
    module = CLASSES[name](channels=(32, 64), layers=1)
    params = weights(module)
    if name == "tvae":  # of one layer, diffusers' middle is one block: what follows it in ours has to be the identity
        mid = params["params"]["decoder"]["mid_block"]
        mid["attentions_0"] |= jax.tree.map(np.zeros_like, {"to_out": mid["attentions_0"]["to_out"]})
        for block in mid["resnets_1"].keys() - {"mix_factor"}:
            mid["resnets_1"][block]["conv2"] = jax.tree.map(np.zeros_like, mid["resnets_1"][block]["conv2"])
    frames = lambda a: a.transpose(0, 2, 3, 1).reshape(2, 3, *a.shape[2:], a.shape[1])  # two clips of three
    posterior = apply(module, params, frames(golden_input("vae_img", (6, 3, 16, 16))), "encode")
    video = apply(module, params, frames(golden_input("vae_z", (6, 4, 8, 8))), "decode")
    moments = np.concatenate([posterior.mean, posterior.logvar], -1)
    decoded = golden["tvae_dec_f3" if name == "tvae" else "vae_dec"]
    assert relative_error(moments[:, :, pixels, pixels], frames(golden[f"{name}_moments"])) < 1e-5
    assert relative_error(video[:, :, pixels, pixels], frames(decoded)) < 1e-5


@pytest.mark.parametrize("name", CLASSES)
def test_golden(name):
    with np.load(FOLDER / "vae.npz") as golden:  # every third pixel
        check_golden(name, golden, slice(None, None, 3))


@pytest.mark.full
@pytest.mark.parametrize("name", CLASSES)
def test_golden_whole(name, shared):
    with np.load(shared / "golden" / "diffusion" / "diffusers_tiny.npz") as golden:
        check_golden(name, golden, slice(None))


def torch_module(module, **options):
    """diffusers' module of the same sizes."""
    from helpers_torch import diffusers

    levels = len(module.channels)
    sizes = dict(
        block_out_channels=tuple(module.channels),
        layers_per_block=module.layers,
        latent_channels=module.latent,
        down_block_types=("DownEncoderBlock2D",) * levels,
    )
    if isinstance(module, TemporalAutoencoderKL):
        return diffusers.AutoencoderKLTemporalDecoder(**sizes, **options)
    sizes |= dict(up_block_types=("UpDecoderBlock2D",) * levels, norm_num_groups=module.groups)
    return diffusers.AutoencoderKL(**sizes, **options)


RANDOM = [
    (AutoencoderKL(channels=(16, 24), layers=2, latent=3, groups=8), (2, 3, 18, 10)),
    (AutoencoderKL(channels=(8, 16, 8), layers=1, latent=5, groups=4), (2, 1, 12, 20)),
    (AutoencoderKL(channels=(32,), layers=3, latent=4, groups=32), (2, 5, 6, 10)),
    (TemporalAutoencoderKL(channels=(32,), layers=2, latent=6), (2, 7, 8, 6)),
    (TemporalAutoencoderKL(channels=(32, 64), layers=2, latent=4), (2, 3, 18, 10)),
    (TemporalAutoencoderKL(channels=(64, 32), layers=2, latent=3), (2, 5, 8, 20)),
]


@pytest.mark.full
@pytest.mark.parametrize("module, shape", RANDOM, ids=[f"{type(m).__name__}-{m.channels}" for m, _ in RANDOM])
def test_equals_diffusers_with_gradients(module, shape):
    from helpers_torch import torch

    theirs, params = torch_module(module), weights(module)
    names = {n: tuple(p.shape) for n, p in theirs.named_parameters()}
    assert names == torch_shapes(module)
    theirs.load_state_dict({n: torch.from_numpy(golden_weight(n, s)) for n, s in names.items()}, strict=True)
    rng, (b, t, h, w) = np.random.default_rng(0), shape
    video = rng.uniform(-1, 1, (*shape, 3)).astype(np.float32)
    z = rng.standard_normal((b, t, h // module.factor, w // module.factor, module.latent)).astype(np.float32)

    frames = lambda a: torch.from_numpy(a.reshape(-1, *a.shape[2:]).transpose(0, 3, 1, 2).copy()).requires_grad_()
    back = lambda a: a.detach().numpy().transpose(0, 2, 3, 1).reshape(b, t, *a.shape[2:], a.shape[1])
    video_torch, z_torch = frames(video), frames(z)
    posterior = theirs.encode(video_torch).latent_dist
    clip = dict(num_frames=t) if isinstance(module, TemporalAutoencoderKL) else {}
    decoded = theirs.decode(z_torch, **clip).sample
    expected = [back(a) for a in (posterior.mean, posterior.logvar, decoded)]
    # one number that every output and so every parameter has a share in
    cotangents = [rng.standard_normal(a.shape).astype(np.float32) for a in expected]
    total = sum((a * frames(c)).sum() for a, c in zip((posterior.mean, posterior.logvar, decoded), cotangents))
    total.backward()
    wanted = rename({n: p.grad.numpy() for n, p in theirs.named_parameters()}, convert_vae.RULES)
    wanted |= {"video": back(video_torch.grad), "z": back(z_torch.grad)}

    def ours(params, video, z):
        posterior = module.apply(params, video, method="encode")
        outputs = posterior.mean, posterior.logvar, module.apply(params, z, method="decode")
        return sum((a * c).sum() for a, c in zip(outputs, cotangents)), outputs

    with jax.default_matmul_precision("highest"):
        grads, outputs = jax.jit(jax.grad(ours, (0, 1, 2), has_aux=True), compiler_options=QUICK)(params, video, z)
    for found, a in zip(outputs, expected):
        assert relative_error(found, a) < 1e-4
    found = flatten(grads[0]["params"]) | {"video": grads[1], "z": grads[2]}
    check(found, {n: a.shape for n, a in wanted.items()})
    largest = max(np.abs(a).max() for a in wanted.values())
    for name, a in wanted.items():  # the bias of the attention's keys has no influence, and a gradient of rounding errors
        np.testing.assert_allclose(found[name], a, rtol=0, atol=1e-3 * np.abs(a).max() + 1e-6 * largest, err_msg=name)


# Sizes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, total, encoder, decoder",
    [("sd", 83_653_863, 34_163_592, 49_490_179), ("svd", 97_742_847, 34_163_592, 63_579_183)],
)
def test_published_sizes(name, total, encoder, decoder):
    module = build(VAES[name])
    sizes = {n: int(np.prod(s)) for n, s in convert_vae.shapes(module).items()}
    part = lambda start: sum(size for n, size in sizes.items() if n.startswith(start))
    assert (part(""), part("encoder/"), part("decoder/")) == (total, encoder, decoder)
    assert module.factor == 8 and module.scaling == 0.18215 and module.vrange == (-1, 1)


@pytest.mark.full
@pytest.mark.parametrize("name", VAES)
def test_names_and_shapes_are_diffusers(name):
    from helpers_torch import torch

    module = build(VAES[name])
    with torch.device("meta"):
        theirs = torch_module(module)
    assert {n: tuple(p.shape) for n, p in theirs.state_dict().items()} == torch_shapes(module)


@pytest.mark.parametrize("cls", CLASSES.values())
def test_conversion_there_and_back_is_bit_equal(cls):
    published = {n: golden_weight(n, s) for n, s in torch_shapes(cls(**SMALL)).items()}
    back = rename(rename(published, convert_vae.RULES), invert(convert_vae.RULES))
    assert back.keys() == published.keys()
    for name, a in published.items():
        np.testing.assert_array_equal(back[name], a)


def test_names_of_older_files():
    new = torch_shapes(AutoencoderKL(**SMALL))
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {re.sub("|".join(names), lambda m: names[m[0]], n): s for n, s in new.items()}
    assert old.keys() != new.keys() and convert_vae.published("sd", old) == new
    assert convert_vae.published("sd", new) == new


# What it promises ---------------------------------------------------------------------------------------------------


class Open(AutoencoderKL):
    """Whose latents are the pixels."""

    def encode(self, video):
        return Posterior(video, jnp.full_like(video, 2 * np.log(3.0)))

    def decode(self, z):
        return 2 * z


def test_reconstruction_is_of_the_mode_or_of_a_sample():
    video, posterior = Open(**SMALL).apply({}, VIDEO)
    np.testing.assert_array_equal(video, 2 * VIDEO)
    key = jax.random.key(0)
    other, _ = Open(**SMALL).apply({}, VIDEO, key)
    np.testing.assert_array_equal(other, 2 * posterior.sample(key))
    np.testing.assert_allclose(posterior.sample(key), VIDEO + 3 * jax.random.normal(key, VIDEO.shape), rtol=1e-5, atol=1e-5)


def test_posterior():
    mean, logvar = jnp.full((1, 1, 100, 100, 4), 2.0), jnp.full((1, 1, 100, 100, 4), 2 * np.log(3.0))
    sample = Posterior(mean, logvar).sample(jax.random.key(1))
    assert abs(sample.mean() - 2) < 0.05 and abs(sample.std() - 3) < 0.05
    np.testing.assert_allclose(Posterior(mean, logvar).kl(), 0.5 * (4 + 9 - 1 - np.log(9)), rtol=1e-5)
    assert float(jnp.abs(Posterior(0 * mean, 0 * mean).kl()).max()) == 0


def test_logvar_is_bounded():
    module = AutoencoderKL(**SMALL)
    params = weights(module)
    params["params"]["quant_conv"]["bias"] = np.float32([0, 0, 0, 1e3, -1e3, 0])
    logvar = apply(module, params, VIDEO[:, :2], "encode").logvar
    assert (logvar[..., 0] == 20).all() and (logvar[..., 1] == -30).all()


def test_a_temporal_decoder_that_does_not_blend_is_the_plain_one():
    temporal, plain = TemporalAutoencoderKL(**SMALL), AutoencoderKL(**SMALL)
    params = flatten(weights(temporal)["params"])
    for name in [n for n in params if n.endswith("mix_factor")]:
        params[name] = np.float32([-200])
    params["decoder/time_conv_out/kernel"] = np.eye(3, dtype=np.float32) * np.float32([0, 1, 0]).reshape(3, 1, 1, 1, 1)
    params["decoder/time_conv_out/bias"] = np.zeros(3, np.float32)
    frames = {n.replace("/spatial_res_block", ""): a for n, a in params.items()}
    frames = {n: a for n, a in frames.items() if "temporal_res" not in n and "time_conv" not in n and "mix" not in n}
    frames |= {"post_quant_conv/kernel": np.eye(3, dtype=np.float32)[None, None], "post_quant_conv/bias": np.zeros(3, np.float32)}
    found = apply(temporal, {"params": nest(params)}, LATENTS[:, :2], "decode")
    expected = apply(plain, {"params": nest(frames)}, LATENTS[:, :2], "decode")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_half_precision_is_close_and_keeps_float32_parameters():
    module = AutoencoderKL(**SMALL)
    params = weights(module)
    exact = apply(module, params, LATENTS[:, :2], "decode")
    half = apply(dataclasses.replace(module, dtype=jnp.bfloat16), params, LATENTS[:, :2], "decode")
    assert half.dtype == jnp.bfloat16 and relative_error(half.astype(jnp.float32), exact) < 0.05


def test_what_does_not_fit_is_named():
    module = AutoencoderKL(**SMALL)
    with pytest.raises(ValueError, match="frames of 1x20 are smaller than one latent, which has 2x2 pixels"):
        module.apply({}, VIDEO[:, :, :1], method="encode")
    with pytest.raises(ValueError, match="latents of 3 channels are decoded here, got 4"):
        module.apply({}, np.zeros((1, 1, 4, 4, 4), np.float32), method="decode")


# Memory -------------------------------------------------------------------------------------------------------------


def calls(module, method):
    return partial(compiled(module, method), weights(module))


def test_chunks_of_frames_are_exact_where_frames_are_apart():
    for method, x in (("encode", VIDEO), ("decode", LATENTS)):
        f = calls(AutoencoderKL(**SMALL), method)
        whole, chunks = f(x), in_chunks(f, x, 2)
        assert jax.tree.structure(whole) == jax.tree.structure(chunks)
        jax.tree.map(partial(np.testing.assert_allclose, atol=2e-6), chunks, whole)


def test_chunks_are_exact_where_the_overlap_covers_the_reach():
    blur = lambda x: sum(jnp.pad(x, ((0, 0), (2, 2), (0, 0), (0, 0), (0, 0)))[:, i : i + x.shape[1]] for i in range(5))
    np.testing.assert_allclose(in_chunks(blur, VIDEO, 2, overlap=2), blur(VIDEO), atol=1e-6)
    assert relative_error(in_chunks(blur, VIDEO, 2, overlap=1), blur(VIDEO)) > 0.05


def test_chunks_of_the_temporal_decoder_are_close():
    """And with an overlap closer."""
    f = calls(TemporalAutoencoderKL(**{**SMALL, "channels": (8,)}), "decode")
    z = np.random.default_rng(2).standard_normal((1, 8, 6, 10, 3)).astype(np.float32)
    whole = np.asarray(f(z))
    rms = lambda a: np.sqrt(np.mean(np.square(a - whole)) / np.mean(np.square(whole)))
    apart, overlapping = rms(in_chunks(f, z, 4)), rms(in_chunks(f, z, 4, overlap=2))
    assert 1e-4 < overlapping < 0.6 * apart < 0.2, (apart, overlapping)
    np.testing.assert_array_equal(in_chunks(f, z, 8), whole)


@pytest.mark.parametrize("tile, overlap", [((5, 4), (2, 1)), ((3, 10), (0, 0)), ((4, 7), (3, 6)), ((99, 5), (1, 1))])
def test_tiles_of_what_treats_cells_apart_are_exact(tile, overlap):
    double = lambda x: jnp.repeat(jnp.repeat(jnp.square(x), 2, 2), 2, 3)
    np.testing.assert_allclose(in_tiles(double, LATENTS, tile, overlap), double(LATENTS), rtol=1e-6)


def test_tiles_are_blended_linearly():
    value = iter([0.0, 4.0])
    f = lambda x: jnp.full_like(x, next(value))
    found = in_tiles(f, np.zeros((1, 1, 1, 7, 1), np.float32), (1, 5), (0, 3))
    np.testing.assert_allclose(found[0, 0, 0, :, 0], [0, 0, 1, 2, 3, 4, 4], atol=1e-6)


@pytest.mark.parametrize("method", ["encode", pytest.param("decode", marks=pytest.mark.full)])
def test_tiles_of_the_autoencoder_are_close(method):
    """On noise, whose statistics are those of its tiles; relative RMS of the difference."""
    f = calls(AutoencoderKL(**SMALL), method)
    n = dict(encode=2, decode=1)[method]
    x = np.random.default_rng(3).standard_normal((1, 1, 48 * n, 64 * n, 3)).astype(np.float32)
    whole, tiles = f(x), in_tiles(f, x, (32 * n, 32 * n), (16 * n, 16 * n))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(tiles)):
        assert a.shape == b.shape
        assert np.sqrt(np.mean(np.square(a - b)) / np.mean(np.square(a))) < 0.1
    one = in_tiles(f, x, x.shape[2:4], (0, 0))
    jax.tree.map(np.testing.assert_array_equal, one, whole)


def test_chunks_and_tiles_that_cannot_be_are_named():
    f = lambda x: x[:, :, ::2, ::2]
    with pytest.raises(ValueError, match="frames=0, overlap=0"):
        in_chunks(f, VIDEO, 0)
    with pytest.raises(ValueError, match="along w the tile is 4 and the overlap 4"):
        in_tiles(f, VIDEO, (8, 4), (4, 4))
    with pytest.raises(ValueError, match="give multiples of the autoencoder's factor"):
        in_tiles(f, VIDEO, (8, 8), (4, 3))
