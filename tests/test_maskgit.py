"""MaskGIT's tokenizer, transformer and decoding equal the original code; its configs have the original's parameters."""

import ast
import importlib
import json
from functools import partial

import jax
import numpy as np
import pytest

from helpers import GOLDEN, Golden, nest, relative_error
from magvid.masked.commit import FIXED_TARGET, UNCONDITIONED
from magvid.masked.decode import decode
from magvid.models import vq2d
from magvid.models.quantizers import VQ
from magvid.models.tokenizer import Tokenizer
from magvid.models.transformer import Transformer
from magvid.objectives.masked import Masked
from magvid.job import check_config
from magvid.train import train
from magvid.types import Vocab
from test_masked_decode import recorded
from tools import convert_magvit, official
from tools.rules import rename

FOLDER = GOLDEN.parent / "maskgit"


def parameters(golden: Golden) -> dict[str, np.ndarray]:
    """The parameters with which a golden file was made; kernels preserve the variance, scales lie around 1."""
    flat = {}
    for i, (name, shape) in enumerate(sorted(json.loads(str(golden["shapes"])).items())):
        u = np.random.RandomState(i).uniform(-1, 1, shape)
        if name.endswith("kernel"):
            inputs = {"out": 2, "query": 1, "key": 1, "value": 1}.get(name.split("/")[-2], len(shape) - 1)
            u *= np.sqrt(3 / np.prod(shape[:inputs]))
        flat[name] = (0.2 * u if name.endswith("bias") else 1 + 0.3 * u if name.endswith("scale") else u).astype(np.float32)
    np.testing.assert_allclose(sum(np.abs(a).sum(dtype=np.float64) for a in flat.values()), golden["checksum"], rtol=1e-9)
    return flat


def tokenizer(config: dict) -> Tokenizer:
    c = config["vqvae"]
    levels = dict(multipliers=tuple(c["channel_multipliers"]), temporal=(False,) * (len(c["channel_multipliers"]) - 1))
    shared = dict(levels, filters=c["filters"], blocks=c["num_res_blocks"], shortcut=vq2d.branch_shortcut)
    dim = c["embedding_dim"]
    return Tokenizer(vq2d.Encoder(dim=dim, **shared), VQ(c["codebook_size"], dim), vq2d.Decoder(**shared))


def transformer(config: dict, vocab: Vocab, length: int) -> Transformer:
    c = config["transformer"]
    return Transformer(vocab.size, length, c["num_embeds"], c["num_layers"], c["num_heads"], c["intermediate_size"])


def test_golden_tokenizer():
    golden = Golden("tokenizer", FOLDER)
    model, params = tokenizer(golden.config), {"params": nest(parameters(golden))}
    run = lambda method: jax.jit(partial(model.apply, params, method=method))
    image = golden["x"][:, None]  # a clip of one frame
    assert relative_error(run("encode")(image)[:, 0], golden["z"]) < 1e-4
    np.testing.assert_array_equal(run("encode_ids")(image)[:, 0], golden["ids"])
    assert relative_error(run("__call__")(image)[0][:, 0], golden["recon"]) < 1e-4
    video = run("ids_to_video")(golden["ids"][:, None].astype(np.int32))
    assert relative_error(video[:, 0], golden["decode_from_ids"].clip(0, 1)) < 1e-4


def objective_and_params():
    golden, images = Golden("transformer", FOLDER), Golden("tokenizer", FOLDER)
    vocab = Vocab(golden.config["vqvae"]["codebook_size"], golden.config["num_class"], 1, unconditional=False)
    objective = Masked(
        tokenizer=tokenizer(golden.config),
        transformer=transformer(golden.config, vocab, golden["sequence"].shape[1]),
        vocab=vocab,
        tasks=("CG",),
        conditioning=UNCONDITIONED,
    )
    params = rename(parameters(golden), official.MASKGIT)
    return golden, objective, {"tokenizer": nest(parameters(images)), "transformer": nest(params)}


def replay(golden: Golden, grid) -> dict:
    """The recorded noise on our grid."""
    names = "noise_sample_gumbel", "noise_mask_gumbel"
    return recorded({n: golden[n].reshape(*golden[n].shape[:2], *grid, *golden[n].shape[3:]) for n in names})


def test_golden_logits():
    golden, objective, params = objective_and_params()
    ids = golden["sequence"] % objective.vocab.size
    assert objective.vocab.mask == golden["logits"].shape[-1] - 1
    logits = jax.jit(objective.transformer.apply)({"params": params["transformer"]}, ids)
    assert relative_error(logits, golden["logits"]) < 1e-4


def test_golden_generation():
    """Class -> tokens of every step -> images, with the noise that the original drew."""
    golden, objective, params = objective_and_params()
    options = dict(steps=int(golden["steps"]), temperature=4.5, **replay(golden, (1, 4, 4)))
    objective = objective.with_decoding(**options)
    video = np.zeros((2, 1, 16, 16, 3), np.uint8)
    batch = dict(video=video, label=golden["labels"], task=np.zeros(2, np.int32))
    ids, steps = jax.jit(objective.sample_ids)(params, batch, jax.random.key(0))
    np.testing.assert_array_equal(np.moveaxis(np.asarray(steps.sampled), 0, 1).reshape(2, -1, 16), golden["sampled"])
    images = jax.jit(objective.sample)(params, batch, jax.random.key(0))
    assert relative_error(images[:, 0], golden["images"].clip(0, 1)) < 1e-4


def test_golden_editing():
    """Known tokens stay, as MaskGIT edits an image; only the number of unknown ones counts for the schedule."""
    golden, objective, params = objective_and_params()
    grid, known = (2, 1, 4, 4), golden["known"][:, 1:].reshape(2, 1, 4, 4)
    prefix = golden["known"][:, :1]
    ids, steps = decode(
        lambda inputs, uncond: objective.logits(params, prefix, inputs),
        known,
        known >= 0,
        jax.random.key(0),
        mask_id=objective.vocab.mask,
        steps=int(golden["steps"]),
        conditioning=FIXED_TARGET,
        **replay(golden, grid[1:]),
    )
    np.testing.assert_array_equal(np.moveaxis(np.asarray(steps.sampled), 0, 1).reshape(2, -1, 16), golden["edited"])


# --- configs


def get(name: str, arg: str):
    return importlib.import_module(f"configs.{name}").get_config(arg)


def tree(name: str) -> dict[str, tuple[int, ...]]:
    section = (FOLDER / "param_trees.txt").read_text().split(f"## {name}\n")[1].split("\n##")[0]
    return {row.split("\t")[0]: ast.literal_eval(row.split("\t")[1]) for row in section.strip().splitlines()}


@pytest.mark.parametrize("size", [256, 512])
def test_the_configs_have_the_original_parameters(size):
    config = check_config(get("vqgan_imagenet", f"size={size},perceptual=0"))
    found, _ = convert_magvit.model(config)
    assert found == {group: tree(f"imagenet{size}/{group}") for group in ("tokenizer", "discriminator")}
    masked = check_config(get("maskgit_imagenet", f"size={size}"))
    assert masked["objective"]["tokenizer"] == {"run": f"runs/vqgan_imagenet-{size}", "config": f"configs/vqgan_imagenet.py:size={size}"}
    masked["objective"]["tokenizer"] = config["objective"]["tokenizer"]
    found, _ = convert_magvit.model(masked)
    expected = convert_magvit.official_shapes(found["transformer"], official.MASKGIT)
    assert expected == tree(f"imagenet{size}/transformer")
    assert masked["objective"]["transformer"]["vocab"] == 2025


@pytest.mark.full
def test_smoke(tmp_path):
    """The tokenizer without its discriminator, whose program test_configs runs for MAGVIT's."""
    one, config = jax.devices()[:1], get("vqgan_imagenet", "smoke=1")
    del config.objective.discriminator, config.optim.discriminator
    state, metrics = train(config, tmp_path / "tokenizer", devices=one)
    assert int(state.step) == 2 and all(v == v for v in metrics.values())
    config = get("maskgit_imagenet", "smoke=1")
    config.objective.tokenizer.run = str(tmp_path / "tokenizer")
    state, metrics = train(config, tmp_path / "transformer", devices=one)
    assert int(state.step) == 2 and all(v == v for v in metrics.values())


def test_what_needs_an_uncond_token_is_refused():
    _, objective, _ = objective_and_params()
    parts = dict(tokenizer=objective.tokenizer, transformer=objective.transformer, vocab=objective.vocab)
    with pytest.raises(ValueError, match="guidance=1.5 and condition_drop=0.0 need an UNCOND token"):
        Masked(**parts, tasks=("CG",), guidance=1.5)
    with pytest.raises(ValueError, match="tasks FP need an UNCOND token"):
        Masked(**parts, tasks=("FP",))
    with pytest.raises(ValueError, match="has no UNCOND token"):
        objective.vocab.uncond
    with pytest.raises(ValueError, match="without classes"):
        Vocab(7, 0, 1, unconditional=False)
