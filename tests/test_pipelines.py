"""The pipelines of diffusers, whole and step by step, against the configs that take their place: a pipeline's folder is
converted by the tools, and the config samples from the same noise.
"""

import dataclasses
import importlib
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import clips, magdiff, unets, vaes
from helpers import flatten, relative_error
from helpers_unet import randomised
from magvid import conditions, job
from magvid.__main__ import main
from magvid.build import build
from magvid.diffusion import samplers
from magvid.encode import encode
from magvid.models import clip as clip_tower
from magvid.runs import open_run
from magvid.sample import Options, sample_run
from magvid.train import train
from magvid.video import read_video, write_image, write_video
from tools import convert_clip, convert_resampler, convert_unet, convert_vae
from tools.convert import convert_back, convert_file

pytestmark = pytest.mark.full

STEPS, T, H, W = 3, 5, 32, 48
UNET = dict(channels=(32,), layers=1, attention_levels=(True,), heads=(2,), epsilon=1e-5)  # more levels: test_models_unet.py, test_models_temporal.py
VAE = dict(channels=(32, 32, 64), layers=1)
TOWER = dict(width=32, depth=2, heads=4, mlp=64)
VISION = {**clips.TOWERS["openclip_h_vision"], **TOWER, "patch": 56, "projection": 32}
WORDS = 90  # more than the smoke configs have
TOOLS = {"unet": convert_unet, "vae": convert_vae, "text": convert_clip, "vision": convert_clip}


def small(preset):
    """A preset of the tool at tiny size."""
    spec = {**convert_unet.SPECS[preset], **UNET}
    return spec | {"stem": {**spec["stem"], "heads": 8, "head_dim": 16}} if "stem" in spec else spec


def converted(pipeline, path, presets: dict[str, tuple[str, dict]]):
    """Every network of a diffusers pipeline as a folder `path`/<part>; `presets`: {part: (preset, tiny spec)}."""
    pipeline.save_pretrained(path / "pipeline")
    for part, (preset, spec) in presets.items():
        convert_file(tool(part, preset, spec), preset, str(path / "pipeline"), str(path / part))
    return path


def tool(part, preset, spec):
    """With a tiny preset."""
    found = dataclasses.replace(TOOLS[part].TOOL, presets={preset: spec})
    if part != "unet":
        return found
    given = dict(unets.INPUTS[preset], tokens=dict.fromkeys(unets.INPUTS[preset]["tokens"], 32))
    return dataclasses.replace(found, shapes=lambda preset, unet: convert_unet.shapes(preset, unet, given))


def back(unet, preset, folder):
    """diffusers' U-Net with what `--back` writes of the run with a LoRA: every name, and the attention's weights are new."""
    from safetensors.torch import load_file

    before = {name: p.clone() for name, p in unet.state_dict().items()}
    out = convert_back(tool("unet", preset, small(preset)), str(folder / "lora"), str(folder / "back.safetensors"), preset=preset)
    unet.load_state_dict(load_file(out), strict=True)
    changed = {name for name, p in unet.state_dict().items() if not p.equal(before[name])}
    assert changed and all(".attn" in name for name in changed)


def sampled(name: str, arg: str, batch: dict, tmp_path, *others: str):
    """(x after each step, video) of the config on converted weights; then, with each of `others`, a further argument, the video of the same latents."""
    config = lambda arg: job.check_config(importlib.import_module(f"configs.{name}").get_config(f"weights={tmp_path},dtype=float32{arg}"))
    resolved = [job.resolve(config(arg + other)) for other in ("", *others)]
    objectives = [build(made["objective"]).with_decoding(steps=STEPS) for made, *_ in resolved]
    objective, params = objectives[0], jax.tree.map(jnp.asarray, resolved[0][1])
    levels = objective.schedule.levels(STEPS)

    def run(params, batch):
        denoise = objective.guided(params, batch, jax.random.key(0), batch["noise"].shape[1])
        begin = samplers.begin(batch["noise"], levels)
        steps = samplers.trajectory(objective.sampling.sampler, denoise, begin, levels, jax.random.key(1))
        x = objective.sample_latents(params, batch, jax.random.key(0))
        return steps, *(each.decode(params, x) for each in objectives)

    with jax.default_matmul_precision("highest"):
        return map(np.asarray, jax.jit(run)(params, batch))


def fine_tune(name: str, how: str, folder, latents: bool = False, **shown):
    """Two steps on sprites with the converted weights, or on their latents, then a sample of the run that they make."""
    arg = f"weights={folder},tune={how},smoke=1" + (",views=2" if latents else "")
    config = importlib.import_module(f"configs.{name}").get_config(arg)
    if latents:
        record = encode(config, folder / "latents", devices=jax.devices()[:1])
        assert (record.data["clips"], record.data["views"]) == (8, 2) and record.sizes
        config.data.train.cache = str(folder / "latents")
    state, metrics = train(config, folder / how, devices=jax.devices()[:1])
    assert int(state.step) == 2 and all(v == v for v in metrics.values())
    assert set(state.params) == ({"lora"} if how == "lora" else {"network"})
    paths = sample_run(open_run(folder / how), Options(number=1, out=str(folder / "out"), **shown))
    assert all(path.stat().st_size for path in paths)


def follow_an_instruction(folder, image):
    """Two steps of AID on sprites with the converted weights, then a video that goes on from the picture."""
    where = f"base={folder},text={folder / 'text'},smoke=1,dqformer=32,frames={T},height={H},width={W}"
    config = importlib.import_module("configs.aid_videos").get_config(where)
    state, metrics = train(config, folder / "aid", devices=jax.devices()[:1])
    assert int(state.step) == 2 and all(v == v for v in metrics.values()) and set(state.params) == {"adapters", "dqformer"}
    told = ["--instruction=move the red disc to the left", "--states=red disc|red disc|red disc|disc"]
    main(["predict", str(image), f"--run={folder / 'aid'}", *told, f"--out={folder / 'aid.gif'}"])
    assert read_video(folder / "aid.gif")[0].shape == (T, H, W, 3)


def recorder(found: list):
    def each(pipe, i, t, tensors):
        found.append(tensors["latents"].numpy().copy())
        return tensors

    return each


def tokenizer_in(path):
    from helpers_torch import transformers

    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz")]
    others = [f"{i}</w>" for i in range(40)]  # the smoke configs have 82 words
    tokens = [*letters, "re", "red</w>", *others, "<|startoftext|>", "<|endoftext|>"]
    (path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (path / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    return transformers.CLIPTokenizer(str(path / "vocab.json"), str(path / "merges.txt"), model_max_length=77), len(tokens)


def text_tower(size, seed):
    from helpers_torch import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, hidden_act="gelu",
        bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1, projection_dim=32,
    )  # fmt: skip
    return randomised(transformers.CLIPTextModel(config), seed)


def vision_tower(seed):
    """What VISION is the spec of."""
    from helpers_torch import transformers

    config = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=224, patch_size=56, projection_dim=32, hidden_act="gelu"
    )  # fmt: skip
    return randomised(transformers.CLIPVisionModelWithProjection(config), seed)


def test_stable_video_diffusion(tmp_path):
    from helpers_torch import diffusers, torch, transformers

    channels = dict(block_out_channels=(32, 32, 64), layers_per_block=2, latent_channels=4)
    vae = diffusers.AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 3, scaling_factor=0.18215, sample_size=32, **channels
    )
    unet = diffusers.UNetSpatioTemporalConditionModel(
        in_channels=8, out_channels=4, block_out_channels=(32,), layers_per_block=1, num_attention_heads=(2,),
        down_block_types=("CrossAttnDownBlockSpatioTemporal",), up_block_types=("CrossAttnUpBlockSpatioTemporal",),
        cross_attention_dim=32, addition_time_embed_dim=256, projection_class_embeddings_input_dim=768, num_frames=T,
    )  # fmt: skip
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", interpolation_type="linear",
        prediction_type="v_prediction", sigma_max=700.0, sigma_min=0.002, timestep_spacing="leading",
        timestep_type="continuous", use_karras_sigmas=True, steps_offset=1,
    )  # fmt: skip
    pipe = diffusers.StableVideoDiffusionPipeline(
        vae=randomised(vae, 0), image_encoder=vision_tower(1), unet=randomised(unet, 2), scheduler=scheduler,
        feature_extractor=transformers.CLIPImageProcessor(),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    image = np.random.default_rng(3).integers(0, 256, (H, W, 3)).astype(np.uint8)
    noise = np.random.default_rng(4).standard_normal((1, T, H // 4, W // 4, 4)).astype(np.float32)
    theirs = []
    video = pipe(
        Image.fromarray(image), height=H, width=W, num_frames=T, num_inference_steps=STEPS, fps=9, motion_bucket_id=33,
        noise_aug_strength=0.0, decode_chunk_size=2, latents=torch.from_numpy(np.moveaxis(noise, -1, 2)),
        output_type="np", callback_on_step_end=recorder(theirs),
    ).frames  # fmt: skip
    presets = {
        "unet": ("svd", small("svd")),
        "vae": ("svd", {**vaes.VAES["svd"], **VAE, "layers": 2}),
        "vision": ("openclip_h_vision", VISION),
    }
    converted(pipe, tmp_path, presets)
    batch = {"image": image[None], "noise": noise}
    # the pipeline decodes two frames at a time
    arg = f",frames={T},height={H},width={W},fps=9,motion=33,aug=0.0"
    steps, ours, chunked = sampled("svd", arg, batch, tmp_path, ",chunk=2")
    for mine, other in zip(steps, theirs, strict=True):
        assert relative_error(mine, np.moveaxis(other, 2, -1)) < 1e-4
    assert relative_error(chunked, video) < 1e-4 < relative_error(ours, video)  # how much chunks change is not nothing
    write_image(tmp_path / "a.png", image)
    fine_tune("svd", "lora", tmp_path, image=str(tmp_path / "a.png"))
    back(unet, "svd", tmp_path)
    fine_tune("svd", "temporal", tmp_path, latents=True, image=str(tmp_path / "a.png"))
    text_tower(WORDS, 5).save_pretrained(tmp_path / "words")
    preset, tower = text_part(WORDS)
    convert_file(tool("text", preset, tower), preset, str(tmp_path / "words"), str(tmp_path / "text"))
    follow_an_instruction(tmp_path, tmp_path / "a.png")


def text_part(size):
    return "openclip_h_text", {**clips.TOWERS["openclip_h_text"], **TOWER, "vocab": size, "projection": None}


def text_parts(preset, size):
    return {"unet": (preset, small(preset)), "vae": ("sd", {**vaes.VAES["sd"], **VAE}), "text": text_part(size)}


def autoencoder():
    from helpers_torch import diffusers

    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=32,
        block_out_channels=(32, 32, 64), layers_per_block=1, latent_channels=4, sample_size=32,
    )  # fmt: skip


def ddim():
    from helpers_torch import diffusers

    return diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", set_alpha_to_one=False, steps_offset=1,
        clip_sample=False, timestep_spacing="leading",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["modelscope", "sd"])
def test_text_to_video_and_to_picture(name, tmp_path):
    from helpers_torch import diffusers, torch

    tokenizer, size = tokenizer_in(tmp_path)
    parts = dict(vae=randomised(autoencoder(), 0), text_encoder=text_tower(size, 1), tokenizer=tokenizer, scheduler=ddim())
    common = dict(
        in_channels=4, out_channels=4, block_out_channels=(32,), layers_per_block=1, cross_attention_dim=32, sample_size=8
    )
    frames = T if name == "modelscope" else 1
    noise = np.random.default_rng(4).standard_normal((1, frames, H // 4, W // 4, 4)).astype(np.float32)
    call = dict(height=H, width=W, num_inference_steps=STEPS, negative_prompt="b", output_type="np")
    theirs = []
    if name == "modelscope":
        unet = diffusers.UNet3DConditionModel(
            down_block_types=("CrossAttnDownBlock3D",), up_block_types=("CrossAttnUpBlock3D",),
            attention_head_dim=16, **common,
        )  # fmt: skip
        pipe = diffusers.TextToVideoSDPipeline(unet=randomised(unet, 2), **parts)
        keep = lambda i, t, latents: theirs.append(np.moveaxis(latents.numpy(), 1, -1).copy())
        call |= dict(num_frames=frames, guidance_scale=9.0, callback=keep, callback_steps=1)
        latents = np.moveaxis(noise, -1, 1)
    else:
        unet = diffusers.UNet2DConditionModel(
            down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
            attention_head_dim=(2,), use_linear_projection=True, **common,
        )  # fmt: skip
        checker = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
        pipe = diffusers.StableDiffusionPipeline(unet=randomised(unet, 2), **parts, **checker)
        found = []
        call |= dict(guidance_scale=7.5, callback_on_step_end=recorder(found))
        latents = np.moveaxis(noise[:, 0], -1, 1)
    pipe.set_progress_bar_config(disable=True)
    result = pipe("a red c", latents=torch.from_numpy(latents), **call)
    video = result.frames if name == "modelscope" else result.images[:, None]
    if name == "sd":
        theirs = [np.moveaxis(x, 1, -1)[:, None] for x in found]
    converted(pipe, tmp_path, text_parts("modelscope" if name == "modelscope" else "sd21", size))
    arg = f",frames={frames},height={H},width={W}" if name == "modelscope" else ""
    config = importlib.import_module(f"configs.{name}").get_config(f"weights={tmp_path}{arg}").to_dict()
    batch = conditions.words(conditions.find_tokenizer(config), "a red c", "b") | {"noise": noise}
    steps, ours = sampled(name, arg, batch, tmp_path)
    for mine, other in zip(steps, theirs, strict=True):
        assert relative_error(mine, other) < 1e-4
    assert relative_error(ours, np.asarray(video)) < 1e-4
    fine_tune(name, "lora", tmp_path, latents=True, prompt="a red disc")
    back(unet, "modelscope" if name == "modelscope" else "sd21", tmp_path)


def test_mavin_begins_as_modelscope_and_joins_clips(tmp_path):
    """configs/mavin_horse.py on converted weights: what is trained and what stays, also on kept latents; then the command."""
    from helpers_torch import diffusers, transformers

    tokenizer, size = tokenizer_in(tmp_path)
    parts = dict(vae=randomised(autoencoder(), 0), text_encoder=text_tower(size, 1), tokenizer=tokenizer, scheduler=ddim())
    unet = diffusers.UNet3DConditionModel(
        down_block_types=("CrossAttnDownBlock3D",), up_block_types=("CrossAttnUpBlock3D",), in_channels=4,
        out_channels=4, block_out_channels=(32,), layers_per_block=1, cross_attention_dim=32, sample_size=8, attention_head_dim=16,
    )  # fmt: skip
    converted(diffusers.TextToVideoSDPipeline(unet=randomised(unet, 2), **parts), tmp_path / "base", text_parts("modelscope", size))
    vision = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=224, patch_size=56, projection_dim=32
    )  # fmt: skip
    randomised(transformers.CLIPVisionModelWithProjection(vision), 3).save_pretrained(tmp_path / "clip")
    tower = {**clips.TOWERS["clip_l_vision_projected"], **TOWER, "patch": 56, "projection": 32}
    preset = "clip_l_vision_projected"
    convert_file(tool("vision", preset, tower), preset, str(tmp_path / "clip"), str(tmp_path / "own" / "vision"))

    folders = f"base={tmp_path / 'base'},weights={tmp_path / 'own'},smoke=1"
    config = importlib.import_module("configs.mavin_horse").get_config(f"{folders},views=2")
    for name, value in small("mavin").items():
        config.objective.network[name] = value
    config.objective.network.time_embedding["before_zero"] = True
    config.init = [dict(run=str(tmp_path / "base" / "unet"), groups=["network"], weights="params", skip=["cond_proj"])]
    record = encode(config, tmp_path / "latents", devices=jax.devices()[:1])
    assert record.frames == record.clip[0] and record.contents.startswith("latents, frames")
    losses, states = [], []
    for cache in (None, str(tmp_path / "latents")):
        config.data.train.cache = cache
        state, metrics = train(config, tmp_path / f"run{len(states)}", devices=jax.devices()[:1])
        losses.append(metrics["train/loss/network"])
        states.append(flatten(jax.device_get(state.params["network"])))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # float16 latents
    begin = flatten(open_run(tmp_path / "base" / "unet").weights("network"))
    new = set(states[0]) - set(begin)
    assert new == {"time_embedding/cond_proj/kernel"} and not set(begin) - set(states[0])
    trained = {n for n in states[0] if re.search(unets.MAVIN_TRAINED, n)}
    assert all(np.array_equal(states[0][n], begin[n]) for n in set(begin) - trained)
    assert all(np.any(states[0][n] != begin[n]) for n in trained - new if begin[n].ndim > 1)
    assert np.any(states[0]["time_embedding/cond_proj/kernel"])  # it began at zero

    for i, (shape, rate) in enumerate((((14, 40, 60), 8), ((20, 64, 48), 12), ((11, 36, 54), 8))):
        write_video(tmp_path / f"{i}.mp4", np.random.default_rng(i).integers(0, 256, (*shape, 3)).astype(np.uint8), rate)
    joined = [str(tmp_path / f"{i}.mp4") for i in range(3)]
    command = ["connect", *joined, f"--run={tmp_path / 'run0'}", "--refine=1,2", f"--out={tmp_path / 'out.mp4'}", "--fps=8", "--prompt=a red disc"]
    assert main(command) == 0
    assert read_video(tmp_path / "out.mp4")[0].shape == (14 + 13 + 11, 32, 48, 3)


def first_prediction(config):
    """(output of the network as it begins, told all, its batch, noisy frames (b t h w 4), timesteps (b,)) of a training config."""
    begun = job.Job.from_config(job.check_config(config), jax.devices()[:1])
    loader = begun.loader()
    batch = {name: x for name, x in next(loader).items() if x.dtype.kind in "buif"}
    loader.close()
    state = begun.prepare(batch).init()
    rng = np.random.default_rng(7)
    b, t, h, w, _ = batch["video"].shape
    x, time = rng.normal(size=(b, t, h // 4, w // 4, 4)).astype(np.float32), rng.uniform(0, 999, b).astype(np.float32)

    def predict(params, batch, x, time):
        return begun.objective.raw(params)(x, time, begun.objective.condition(params, batch, {}, jax.random.key(0), t))

    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(predict)({**state.params, **state.frozen}, batch, x, time)), batch, x, time


def test_magdiff_begins_as_stable_diffusion_and_composes_and_edits(tmp_path):
    """configs/magdiff_pexels.py on converted weights: it begins as diffusers' Stable Diffusion, whatever pictures say; all of that is taken, what is new is
    trained, frozen towers stay; then the commands, on real files.
    """
    from helpers_torch import diffusers, torch

    tokenizer, size = tokenizer_in(tmp_path)
    text = text_tower(size, 1)
    parts = dict(vae=randomised(autoencoder(), 0), text_encoder=text, tokenizer=tokenizer, scheduler=ddim())
    unet = diffusers.UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), in_channels=4, out_channels=4,
        block_out_channels=(32,), layers_per_block=1, cross_attention_dim=32, sample_size=8, attention_head_dim=(2,), use_linear_projection=True,
    )  # fmt: skip
    checker = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    converted(diffusers.StableDiffusionPipeline(unet=randomised(unet, 2), **parts, **checker), tmp_path / "sd21v", text_parts("sd21", size))
    vision_tower(3).save_pretrained(tmp_path / "clip")
    preset = "openclip_h_vision"
    convert_file(tool("vision", preset, VISION), preset, str(tmp_path / "clip"), str(tmp_path / "own" / "vision"))

    folders = f"base={tmp_path / 'sd21v'},text={tmp_path / 'sd21v/text'},vision={tmp_path / 'own/vision'}"
    config = importlib.import_module("configs.magdiff_pexels").get_config(f"{folders},smoke=1")
    for name, value in UNET.items():
        config.objective.network[name] = value
    config.init = magdiff.begins(dict(release=False, base=str(tmp_path / "sd21v")))
    ours, batch, x, time = first_prediction(config)
    with torch.no_grad():
        told = text(torch.from_numpy(batch["text_ids"].astype(np.int64)))[0]
        frames = [unet(torch.from_numpy(np.moveaxis(x[:, k], -1, 1)), torch.from_numpy(time), told).sample.numpy() for k in range(x.shape[1])]
    assert batch["entities"].any() and batch["entity_valid"].any(axis=1).all() and np.any(x[:, 0] != x[:, 1])
    assert relative_error(ours, np.moveaxis(np.stack(frames, 1), 2, -1)) < 1e-5

    state, _ = train(config, tmp_path / "run", devices=jax.devices()[:1])
    network, begin = flatten(jax.device_get(state.params["network"])), flatten(open_run(tmp_path / "sd21v/unet").weights("network"))
    assert set(begin) < set(network) and all(re.search(unets.MAGDIFF_NEW, name) for name in set(network) - set(begin))
    same = {name for name in begin if network[name].shape == begin[name].shape and np.array_equal(network[name], begin[name])}
    assert all(re.search(unets.MAGDIFF_TRAINED, name) for name in set(begin) - same) and same  # res blocks stay as they were
    assert np.any(network["conv_in/kernel"][:, :, 4:]) and set(state.params) == {"network", "resampler", "pyramid"}

    rng = np.random.default_rng(5)
    cut = np.dstack([rng.integers(0, 256, (90, 70, 3)), np.where(np.arange(90)[:, None] < 50, 255, np.zeros((90, 70)))]).astype(np.uint8)
    Image.fromarray(cut).save(tmp_path / "cut.png")
    write_video(tmp_path / "a.mp4", rng.integers(0, 256, (11, 64, 120, 3)).astype(np.uint8), 8)  # wider than the clips: it is cut
    Image.fromarray((np.arange(120) < 60).astype(np.uint8)[None].repeat(64, 0) * 255).save(tmp_path / "left.png")
    run, prompt = f"--run={tmp_path / 'run'}", "--prompt=a red disc"
    assert main(["compose", f"--entity={tmp_path / 'cut.png'}", prompt, run, f"--out={tmp_path / 'made.mp4'}"]) == 0
    assert main(["edit", str(tmp_path / "a.mp4"), f"--mask={tmp_path / 'left.png'}", prompt, run, "--start=0.3", "--grow=2", f"--out={tmp_path / 'edited.mp4'}"]) == 0
    made, edited = (read_video(tmp_path / f"{name}.mp4")[0] for name in ("made", "edited"))
    assert made.shape[1:] == edited.shape[1:] == (*config.objective.clip[1:], 3) and len(edited) == 9


def test_the_released_magdiff(tmp_path):
    """release=1 with converted weights: the released sampling, put together of the networks in torch, step by step (the golden files judge these
    networks). Every frame's picture is told, the black ones too, to CLIP with blue for red; guidance leads away from another text alone.
    """
    from helpers_magdiff import Resampler, run, unet
    from helpers_torch import torch

    tokenizer, size = tokenizer_in(tmp_path)
    text, vision, vae = text_tower(size, 1), vision_tower(3), randomised(autoencoder(), 0)
    network = randomised(unet((32,), 1, (True,), (2,), 32), 2)
    sizes = dict(width=24, queries=3, depth=2, heads=2, head_dim=8, out=32)
    resampler = randomised(Resampler(32, **sizes), 4)

    for name, part in (("text", text), ("vision", vision), ("vae", vae)):
        part.save_pretrained(tmp_path / "pipeline" / name)
    tokenizer.save_pretrained(tmp_path / "pipeline" / "tokenizer")
    towers = {"vae": ("sd", {**vaes.VAES["sd"], **VAE}), "text": text_part(size), "vision": ("openclip_h_vision", VISION)}
    for part, (preset, spec) in towers.items():
        convert_file(tool(part, preset, spec), preset, str(tmp_path / "pipeline" / part), str(tmp_path / part))
    released = {"unet.": network, "enclip_projector.": resampler}
    state = {prefix + name: x for prefix, part in released.items() for name, x in part.state_dict().items()}
    torch.save(dict(state_dict=state), tmp_path / "magdiff.ckpt")
    convert_file(tool("unet", "magdiff", small("magdiff")), "magdiff", str(tmp_path / "magdiff.ckpt"), str(tmp_path / "unet"))
    spec = dict(target="magvid.adapters.magdiff:Resampler", **sizes)
    small_resampler = dataclasses.replace(
        convert_resampler.TOOL, presets=dict(magdiff=spec), shapes=lambda preset, module: convert_resampler.shapes(module, 32)
    )
    convert_file(small_resampler, "magdiff", str(tmp_path / "magdiff.ckpt"), str(tmp_path / "resampler"))

    arg = f",release=1,tune=,frames={T},height={H},width={W},base={tmp_path},text={tmp_path / 'text'},vision={tmp_path / 'vision'}"
    config = importlib.import_module("configs.magdiff_pexels").get_config(f"weights={tmp_path}{arg}").to_dict()
    words = conditions.words(conditions.find_tokenizer(config), "a red c", "b")
    rng = np.random.default_rng(3)
    there = np.arange(T) < 2
    pictures = rng.integers(0, 256, (1, T, H, W, 3), np.uint8) * there[:, None, None, None]
    noise = rng.standard_normal((1, T, H // 4, W // 4, 4)).astype(np.float32)
    batch = words | {"noise": noise, "entities": pictures, "entity_valid": there[None]}
    steps, ours = sampled("magdiff_pexels", arg, batch, tmp_path)

    for part in (text, vision, vae, network, resampler):
        part.double()  # so that what differs is our rounding alone; torch has in float32 thirty times as much
    flat = torch.from_numpy(pictures[0] / 255)
    scheduler = ddim()
    scheduler.set_timesteps(STEPS)
    x, theirs = torch.from_numpy(noise).double(), []
    with torch.no_grad():
        entity = vae.encode(2 * flat.permute(0, 3, 1, 2) - 1).latent_dist.mode().permute(0, 2, 3, 1)[None] * vae.config.scaling_factor
        seen = torch.from_numpy(np.array(clip_tower.prepare(jnp.asarray(flat.numpy()[..., ::-1])))).double()
        image = resampler(vision.vision_model(seen.permute(0, 3, 1, 2)).last_hidden_state).flatten(0, 1)[None]
        told, null = (text(torch.from_numpy(words[name].astype(np.int64)))[0] for name in ("text_ids", "null_ids"))
        for time in scheduler.timesteps:
            given, without = (run(network, torch.cat([x, entity], -1), time[None], tokens, image) for tokens in (told, null))
            x = scheduler.step(without + 7.5 * (given - without), time, x).prev_sample
            theirs.append(x.numpy())
        frames = vae.decode(x[0].permute(0, 3, 1, 2) / vae.config.scaling_factor).sample.permute(0, 2, 3, 1)[None]
    for mine, other in zip(steps, theirs, strict=True):
        assert relative_error(mine, other) < 1e-4
    assert relative_error(ours, np.clip(frames.numpy() / 2 + 0.5, 0, 1)) < 1e-4

    Image.fromarray(pictures[0, 0]).save(tmp_path / "a.png")
    settings = f"--config=configs/magdiff_pexels.py:weights={tmp_path}{arg}"
    told = [f"--entity={tmp_path / 'a.png'}", "--prompt=a red c", "--steps=2", settings]
    assert main(["compose", *told, f"--out={tmp_path / 'made.mp4'}"]) == 0
    assert read_video(tmp_path / "made.mp4")[0].shape == (T, H, W, 3)
