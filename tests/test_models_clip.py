"""CLIP's towers equal transformers', their sizes are the published ones, and images are resized as the originals do."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import clips
from helpers import GOLDEN, flatten, nest, relative_error
from helpers_diffusion import golden_input, golden_weight
from magvid.build import build
from magvid.data.clip import ClipView
from magvid.models import resize
from magvid.models.clip import CLIP, MEAN, STD, TextTower, VisionTower, normalise, prepare, quick_gelu
from magvid.models.layers import gelu
from tools import convert_clip
from tools.convert_clip import convert, restore
from tools.rules import rename

ACTIVATIONS = dict(gelu=gelu, quick_gelu=quick_gelu)


def given(name: str, shape) -> np.ndarray:
    """The golden input of this name; of images, which are (b 3 h w) there, ours."""
    return golden_input(name, shape).transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN.parent / "diffusion" / "clip.npz") as file:
        return dict(file)


def golden_params(tower, prefix=""):
    """Our parameters with the golden weights; `prefix` is what the published names have and the golden ones lack."""
    theirs = restore(tower, {n: np.zeros(s, np.float32) for n, s in convert_clip.shapes(tower).items()})
    names = {n: n.removeprefix(prefix) for n in theirs}
    return {"params": nest(convert(tower, {n: golden_weight(names[n], theirs[n].shape) for n in theirs}))}


def random_params(module) -> dict:
    """Without tracing the initialisation, which takes longer to compile than the module."""
    rng = np.random.default_rng(0)
    flat = {n: rng.standard_normal(s).astype(np.float32) * 0.3 for n, s in convert_clip.shapes(module).items()}
    return {"params": nest({n: a + n.endswith("scale") if "norm" in n else a for n, a in flat.items()})}


def run(module, params, *inputs):
    return jax.jit(module.apply)(params, *inputs)


TEXT = TextTower(100, 77, width=32, depth=2, heads=4, mlp=64, activation=gelu)


def test_text_golden(golden):
    found = jax.jit(TEXT.apply)(golden_params(TEXT, "text_model."), golden["clipt_ids"])
    assert relative_error(found.tokens[:, ::11], golden["clipt_last"]) < 1e-5
    assert found.embedding is None


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_vision_golden(name, golden):
    tower = VisionTower(32, 2, 4, 64, patch=14, image=(28, 28), activation=ACTIVATIONS[name], projection=16)
    found = jax.jit(tower.apply)(golden_params(tower), given("clip_img", (2, 3, 28, 28)))
    assert relative_error(found.tokens, golden[f"clipv_{name}_last"]) < 1e-5
    assert relative_error(found.embedding, golden[f"clipv_{name}_embeds"]) < 1e-5


def test_a_word_reads_only_those_before_it_and_eos_is_pooled():
    tower = TextTower(50, 9, width=8, depth=2, heads=2, mlp=16, projection=4)
    ids = jnp.asarray([[1, 7, 8, 49, 3, 3], [1, 9, 49, 3, 49, 3]])
    params = random_params(tower)
    # not under jit, where XLA may compute a row twice, with other last bits
    found, changed = (tower.apply(params, x) for x in (ids, ids.at[:, 4].set(20)))
    np.testing.assert_array_equal(found.tokens[:, :4], changed.tokens[:, :4])
    assert not np.allclose(found.tokens[:, 4:], changed.tokens[:, 4:])
    # by default the first of the highest id; with `eos`, the first of that id
    np.testing.assert_array_equal(found.pooled, jnp.stack([found.tokens[0, 3], found.tokens[1, 2]]))
    other = tower.clone(eos=3).apply(params, ids)
    np.testing.assert_array_equal(other.pooled, jnp.stack([other.tokens[0, 4], other.tokens[1, 3]]))
    np.testing.assert_allclose(found.embedding, found.pooled @ params["params"]["projection"]["kernel"], rtol=1e-5)


def test_the_penultimate_layer_is_that_of_a_tower_of_one_layer_less():
    tower = TextTower(50, 9, width=8, depth=3, heads=2, mlp=16, skip=1)
    ids = jnp.asarray([[1, 7, 8, 49, 3], [1, 9, 6, 5, 49]])
    params = random_params(tower)
    found, whole = run(tower, params, ids), run(tower.clone(skip=0), params, ids)
    encoder = {k: v for k, v in params["params"]["encoder"].items() if k != "layers_2"}
    shorter = run(tower.clone(depth=2, skip=0), {"params": {**params["params"], "encoder": encoder}}, ids)
    np.testing.assert_allclose(found.tokens, shorter.tokens, atol=1e-6)
    np.testing.assert_allclose(found.pooled, whole.pooled, atol=1e-6)
    with pytest.raises(ValueError, match="skip=3 of 3 layers"):
        tower.clone(skip=3).apply(params, ids)


def tiny_clip(**options) -> CLIP:
    sizes = dict(width=8, depth=1, heads=2, mlp=16, projection=6)
    return CLIP(TextTower(50, 9, **sizes), VisionTower(patch=4, image=(8, 12), **sizes), **options)


def test_scores_are_scaled_cosines():
    clip, ids = tiny_clip(), jnp.asarray([[1, 7, 49], [1, 8, 49], [2, 9, 49]])
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 12, 3)), jnp.float32)
    params = random_params(clip)
    params["params"]["logit_scale"] = np.float32(math.log(10))
    scores = run(clip, params, images, ids)
    def embedding(name, x):
        return np.asarray(run(getattr(clip, name), {"params": params["params"][name]}, x).embedding)

    a, b = embedding("vision", images), embedding("text", ids)
    cosine = (a @ b.T) / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    np.testing.assert_allclose(scores, 10 * cosine, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="projection is 6 of the text tower and None of the image tower"):
        jax.eval_shape(CLIP(clip.text, clip.vision.clone(projection=None)).init, jax.random.key(0), images, ids)
    init = jax.eval_shape(tiny_clip(temperature=0.1).init, jax.random.key(0), images, ids)
    assert init["params"]["logit_scale"].shape == ()


def test_half_precision_and_remat_change_no_names_and_few_numbers():
    clip, ids = tiny_clip(), jnp.asarray([[1, 7, 49], [1, 8, 49]])
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 12, 3)), jnp.float32)
    params = random_params(clip)
    scale = np.exp(params["params"]["logit_scale"])
    options = dict(dtype=jnp.bfloat16, remat=True)
    other = CLIP(clip.text.clone(**options), clip.vision.clone(**options))
    found = run(other, params, images, ids)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, run(clip, params, images, ids), atol=0.03 * scale)
    tokens = lambda p, x: other.apply(p, x, method=lambda m, x: m.text(x).tokens)
    assert jax.eval_shape(tokens, params, ids).dtype == jnp.bfloat16
    gradients = lambda t: jax.jit(jax.grad(lambda p: jnp.sum(t.apply(p, ids).pooled ** 2)))(random_params(clip.text))
    close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, gradients(clip.text.clone(remat=True)), gradients(clip.text))


def test_wrong_sizes_are_named():
    tower, key = VisionTower(8, 1, 2, 16, patch=4, image=(8, 12)), jax.random.key(0)
    with pytest.raises(ValueError, match="images of 12x12 do not fit the tower's 8x12"):
        jax.eval_shape(tower.init, key, jnp.zeros((1, 12, 12, 3)))
    with pytest.raises(ValueError, match="an image of 9x12 cannot be cut into patches of 4x4"):
        jax.eval_shape(tower.clone(interpolate=True).init, key, jnp.zeros((1, 9, 12, 3)))
    with pytest.raises(ValueError, match="9 tokens do not fit the transformer's 8 learned positions"):
        jax.eval_shape(TextTower(50, 8, 8, 1, 2, 16).init, key, jnp.zeros((1, 9), jnp.int32))
    with pytest.raises(ValueError, match="width 8 is not a multiple of heads 3"):
        jax.eval_shape(TextTower(50, 8, 8, 1, 3, 16).init, key, jnp.zeros((1, 8), jnp.int32))


# Sizes --------------------------------------------------------------------------------------------------------------

COUNTS = dict(
    clip_l_text=123_060_480,
    clip_l_vision=303_179_776,
    clip_l_vision_projected=303_966_208,
    openclip_h_text=340_387_840,
    openclip_h_vision=632_076_800,
    clip_b32=151_277_313,
    clip_l=427_616_513,
)


@pytest.mark.parametrize("preset", convert_clip.PRESETS)
def test_full_sizes_have_the_published_number_of_parameters(preset):
    assert sum(math.prod(shape) for shape in convert_clip.shapes(preset).values()) == COUNTS[preset]


def test_without_projection():
    tower = build(dict(clips.TOWERS["openclip_h_vision"], projection=None))
    assert sum(math.prod(shape) for shape in convert_clip.shapes(tower).values()) == 630_766_080


# Conversion ---------------------------------------------------------------------------------------------------------


def random_weights(tower) -> dict[str, np.ndarray]:
    """Under the names of the published files."""
    shapes = convert_clip.shapes(tower)
    return restore(tower, {n: np.random.default_rng(i).random(s, np.float32) for i, (n, s) in enumerate(shapes.items())})


def test_conversion_is_strict_and_reversible():
    tower = tiny_clip().vision
    weights = random_weights(tower)
    arrays = convert(tower, weights)
    back = restore(tower, arrays)
    assert back.keys() == weights.keys() and all(np.array_equal(back[n], weights[n]) for n in weights)
    kernel = "vision_model.embeddings.patch_embedding.weight"
    np.testing.assert_array_equal(arrays["patch_embedding/kernel"], weights[kernel].transpose(2, 3, 1, 0))
    buffer = {"vision_model.embeddings.position_ids": np.arange(7)[None]}
    assert convert(tower, weights | buffer).keys() == arrays.keys()
    name = "vision_model.encoder.layers.0.mlp.fc1.bias"
    for wrong, message in (
        ({n: a for n, a in weights.items() if n != name}, "vision_model.encoder.layers.0.mlp.fc1.bias is missing"),
        (weights | {"vision_model.surplus": np.zeros(2)}, "vision_model.surplus is not part of the model"),
        (weights | {name: np.zeros(5)}, r"vision_model.encoder.layers.0.mlp.fc1.bias is \(5,\) and should be \(16,\)"),
        (weights | {"vision_model.encoder.layers.1.mlp.fc1.bias": np.zeros(16)}, "vision_model.encoder.layers.1.mlp.fc1.bias is not part of"),
        (random_weights(tiny_clip().text), "text_model.embeddings.* is not part of the model"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(tower, wrong)
    with pytest.raises(ValueError, match='there is no CLIP preset "clip_h"; choose of clip_l_text'):
        convert_clip.rules("clip_h")


def test_a_tower_is_read_out_of_a_whole_model_and_without_its_prefix():
    clip = tiny_clip()
    weights = random_weights(clip)
    whole = convert(clip, weights)
    for name in ("text", "vision"):
        tower = getattr(clip, name)
        own = {n.removeprefix(f"{name}/"): a for n, a in whole.items() if n.startswith(name)}
        found = convert(tower, weights)
        assert found.keys() == own.keys() and all(np.array_equal(found[n], own[n]) for n in own)
        bare = {n.removeprefix(f"{name}_model."): a for n, a in random_weights(tower.clone(projection=None)).items()}
        assert convert(tower.clone(projection=None), bare).keys() == own.keys() - {"projection/kernel"}
        assert convert(tower.clone(projection=None), weights).keys() == own.keys() - {"projection/kernel"}
    with pytest.raises(ValueError, match="surplus is not part of the model"):
        convert(clip.text, weights | {"surplus": np.zeros(1)})


# Images -------------------------------------------------------------------------------------------------------------


def test_resize_golden(golden):
    for name in (n for n in golden if n.startswith("resize_")):
        source, target = (tuple(map(int, part.split("x"))) for part in name.split("_")[1:])
        found = resize.resize_antialiased(given("resize_{}x{}".format(*source), (1, 3, *source)), target)
        np.testing.assert_allclose(found, golden[name], atol=1e-5)


def test_resizing_by_hand():
    image = np.random.default_rng(0).random((2, 5, 7, 3)).astype(np.float32)
    np.testing.assert_allclose(resize.resize_antialiased(image, (5, 7)), image, atol=1e-6)
    np.testing.assert_allclose(resize.resize_bicubic(image, (5, 7)), image, atol=1e-6)
    flat = np.full((1, 6, 9, 3), 0.3, np.float32)
    np.testing.assert_allclose(resize.resize_antialiased(flat, (4, 20)), 0.3, rtol=1e-5)
    corners = resize.cubic_matrix(5, 9, align_corners=True)  # every second place is a sample
    np.testing.assert_allclose(corners[::2], np.eye(5), atol=1e-12)
    np.testing.assert_allclose(corners[3], [-0.09375, 0.59375, 0.59375, -0.09375, 0], atol=1e-12)
    blur = resize.blur_matrix(6, 3.0)  # sigma 1, window 5
    weights = np.exp(-np.arange(-2, 3) ** 2 / 2)
    np.testing.assert_allclose(blur[2, :5], weights / weights.sum(), rtol=1e-12)
    np.testing.assert_allclose(blur[0, :3], np.asarray([weights[2], 2 * weights[3], 2 * weights[4]]) / weights.sum())


def test_prepared_images_are_normalised():
    image = np.full((2, 10, 8, 3), 0.25, np.float32)
    expected = (0.25 - np.asarray(MEAN)) / np.asarray(STD)
    found = prepare(image, (4, 6))
    assert found.shape == (2, 4, 6, 3)
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), rtol=1e-4)
    np.testing.assert_allclose(normalise(image)[0, 0, 0], expected, rtol=1e-5)


def test_clip_view_keeps_the_middle():
    video = np.zeros((3, 8, 16, 3), np.uint8)
    video[:, :, 4:12] = 200
    found = ClipView(8)({"video": video}, np.random.default_rng(0))
    assert found["video"] is video and found["clip_video"].shape == (3, 8, 8, 3) and (found["clip_video"] == 200).all()
    assert ClipView(5)({"video": video[:, :, :6]}, np.random.default_rng(0))["clip_video"].shape == (3, 5, 5, 3)


# Against transformers and diffusers -----------------------------------------------------------------------------------

TEXTS = [
    dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, hidden_act="quick_gelu", vocab_size=60, max_position_embeddings=11, eos_token_id=2, projection_dim=10),
    dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=72, hidden_act="gelu", vocab_size=45, max_position_embeddings=16, eos_token_id=44, projection_dim=32),
    dict(hidden_size=40, num_hidden_layers=1, num_attention_heads=5, intermediate_size=64, hidden_act="gelu", vocab_size=90, max_position_embeddings=7, eos_token_id=50, projection_dim=6),
]  # fmt: skip
VISIONS = [
    dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, hidden_act="quick_gelu", image_size=28, patch_size=14, projection_dim=10),
    dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=72, hidden_act="gelu", image_size=24, patch_size=8, projection_dim=32),
    dict(hidden_size=40, num_hidden_layers=1, num_attention_heads=5, intermediate_size=64, hidden_act="gelu", image_size=20, patch_size=4, projection_dim=6),
]  # fmt: skip


def text_of(c: dict) -> TextTower:
    sizes = dict(vocab=c["vocab_size"], length=c["max_position_embeddings"], width=c["hidden_size"])
    sizes |= dict(depth=c["num_hidden_layers"], heads=c["num_attention_heads"], mlp=c["intermediate_size"])
    eos = None if c["eos_token_id"] == 2 else c["eos_token_id"]
    return TextTower(**sizes, activation=ACTIVATIONS[c["hidden_act"]], projection=c["projection_dim"], eos=eos)


def vision_of(c: dict) -> VisionTower:
    sizes = dict(width=c["hidden_size"], depth=c["num_hidden_layers"], heads=c["num_attention_heads"])
    sizes |= dict(mlp=c["intermediate_size"], patch=c["patch_size"], image=(c["image_size"],) * 2)
    return VisionTower(**sizes, activation=ACTIVATIONS[c["hidden_act"]], projection=c["projection_dim"])


def randomised(torch, module):
    """Weights that let every part count: transformers begins with biases of 0 and tiny embeddings."""
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        if name != "logit_scale":
            noise = torch.randn_like(parameter) * (parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.1)
            parameter.data = noise + (parameter.data if parameter.ndim == 1 else 0)
    return module.eval()


def arrays(module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def check_gradients(module, tower, ours: dict):
    """Gradients of theirs, under our names, equal ours."""
    theirs = {n: p.grad.numpy() for n, p in module.named_parameters()}
    theirs = rename(convert_clip.published_names(tower, theirs), convert_clip.rules(tower))
    ours = flatten(ours)
    assert ours.keys() == theirs.keys()
    largest = max(np.abs(g).max() for g in theirs.values())
    for name, gradient in theirs.items():
        scale = max(np.abs(gradient).max(), 1e-3 * largest)  # key biases have no gradient but rounding
        np.testing.assert_allclose(ours[name], gradient, atol=1e-3 * scale, rtol=0, err_msg=name)


@pytest.mark.full
@pytest.mark.parametrize("case", range(3))
def test_text_equals_transformers(case):
    from helpers_torch import torch, transformers

    config = TEXTS[case]
    module = randomised(torch, transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(bos_token_id=0, **config)))
    tower = text_of(config)
    params = {"params": nest(convert(tower, arrays(module)))}
    rng = np.random.default_rng(case)
    ids = rng.integers(3, 40, (2, config["max_position_embeddings"] - 2))
    ids[0, -2], ids[1, 3] = [config["vocab_size"] - 1 if tower.eos is None else tower.eos] * 2
    weights = [rng.standard_normal((2, ids.shape[1], tower.width)), rng.standard_normal((2, tower.projection))]

    out = module(torch.from_numpy(ids), output_hidden_states=True)
    sum((w * torch.from_numpy(v)).sum() for w, v in zip((out.last_hidden_state, out.text_embeds), weights)).backward()

    def loss(params):
        found = tower.apply(params, ids.astype(np.int32))
        return sum(jnp.sum(a * w) for a, w in zip((found.tokens, found.embedding), weights)), found

    with jax.default_matmul_precision("highest"):
        gradients, found = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert relative_error(found.tokens, out.last_hidden_state.detach().numpy()) < 1e-4
    assert relative_error(found.embedding, out.text_embeds.detach().numpy()) < 1e-4
    check_gradients(module, tower, gradients["params"])
    if tower.depth > 1:
        early = module.text_model.final_layer_norm(out.hidden_states[-2]).detach().numpy()
        assert relative_error(tower.clone(skip=1).apply(params, ids.astype(np.int32)).tokens, early) < 1e-4
    assert all(np.array_equal(a, restore(tower, flatten(params["params"]))[n]) for n, a in arrays(module).items())


@pytest.mark.full
@pytest.mark.parametrize("case", range(3))
def test_vision_equals_transformers(case):
    """The third configuration on images of another, oblong size than its positions."""
    from helpers_torch import torch, transformers

    config = VISIONS[case]
    module = randomised(torch, transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**config)))
    tower, interpolate = vision_of(config), case == 2
    params = {"params": nest(convert(tower, arrays(module)))}
    rng = np.random.default_rng(case)
    size = (12, 28) if interpolate else tower.image
    images = rng.standard_normal((2, *size, 3)).astype(np.float32)
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    out = module(pixels, interpolate_pos_encoding=interpolate)
    theirs = (out.last_hidden_state, out.image_embeds)
    weights = [rng.standard_normal(a.shape) for a in theirs]
    sum((w * torch.from_numpy(v)).sum() for w, v in zip(theirs, weights)).backward()

    def loss(params):
        found = tower.clone(interpolate=interpolate).apply(params, images)
        return sum(jnp.sum(a * w) for a, w in zip((found.tokens, found.embedding), weights)), found

    with jax.default_matmul_precision("highest"):
        gradients, found = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert relative_error(found.tokens, theirs[0].detach().numpy()) < 1e-4
    assert relative_error(found.embedding, theirs[1].detach().numpy()) < 1e-4
    check_gradients(module, tower, gradients["params"])
    plain = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**config))
    bare = {n.removeprefix("vision_model."): t for n, t in module.state_dict().items() if n != "visual_projection.weight"}
    plain.load_state_dict(bare)
    pooled = plain.eval()(pixels, interpolate_pos_encoding=interpolate).pooler_output.detach().numpy()
    assert relative_error(found.pooled, pooled) < 1e-4
    assert convert(tower.clone(projection=None), arrays(plain)).keys() == flatten(params["params"]).keys() - {"projection/kernel"}


@pytest.mark.full
@pytest.mark.parametrize("case", range(3))
def test_clip_equals_transformers(case):
    """Scores of three texts and two images, the contrastive loss' gradients, and the round trip."""
    from helpers_torch import torch, transformers

    text, vision = dict(TEXTS[case], bos_token_id=0), VISIONS[case]
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=text["projection_dim"])
    module = randomised(torch, transformers.CLIPModel(config))
    clip = CLIP(text_of(text), vision_of(vision))
    params = {"params": nest(convert(clip, arrays(module)))}
    rng = np.random.default_rng(case)
    ids = rng.integers(3, 40, (3, 6)).astype(np.int32)
    ids[:, 4] = text["vocab_size"] - 1 if clip.text.eos is None else clip.text.eos
    images = rng.standard_normal((2, *clip.vision.image, 3)).astype(np.float32)
    weights = rng.standard_normal((2, 3)).astype(np.float32)
    out = module(torch.from_numpy(ids).long(), torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    (out.logits_per_image * torch.from_numpy(weights)).sum().backward()
    loss = lambda p: (lambda scores: (jnp.sum(scores * weights), scores))(clip.apply(p, images, ids))
    with jax.default_matmul_precision("highest"):
        gradients, scores = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert relative_error(scores, out.logits_per_image.detach().numpy()) < 1e-4
    check_gradients(module, clip, gradients["params"])
    back = restore(clip, flatten(params["params"]))
    assert all(np.array_equal(a, back[n]) for n, a in arrays(module).items()) and len(back) == len(arrays(module))


@pytest.mark.full
@pytest.mark.parametrize("preset", convert_clip.PRESETS)
def test_full_sizes_cover_the_names_of_transformers(preset):
    from helpers_torch import torch, transformers

    module = convert_clip.module_of(preset)
    act = lambda tower: tower.activation.func.__name__  # the config gives a partial
    sizes = lambda t: dict(hidden_size=t.width, num_hidden_layers=t.depth, num_attention_heads=t.heads, intermediate_size=t.mlp, hidden_act=act(t), projection_dim=t.projection or 1)  # fmt: skip
    text = lambda t: dict(vocab_size=t.vocab, max_position_embeddings=t.length, **sizes(t))
    vision = lambda t: dict(image_size=t.image[0], patch_size=t.patch, **sizes(t))
    with torch.device("meta"):
        if isinstance(module, CLIP):
            config = dict(text_config=text(module.text), vision_config=vision(module.vision))
            theirs = transformers.CLIPModel(transformers.CLIPConfig(projection_dim=module.text.projection, **config))
        elif isinstance(module, TextTower):
            theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(**text(module)))
        else:
            name = "CLIPVisionModelWithProjection" if module.projection else "CLIPVisionModel"
            theirs = getattr(transformers, name)(transformers.CLIPVisionConfig(**vision(module)))
    # meta tensors have no numbers: one element, seen at every place
    flat = {n: np.broadcast_to(np.float32(0), tuple(p.shape)) for n, p in theirs.state_dict().items()}
    assert len(convert(preset, flat)) == len(flat)


@pytest.mark.full
@pytest.mark.parametrize("source, target", [((576, 1024), (224, 224)), ((97, 61), (32, 48)), ((224, 224), (224, 224)), ((50, 300), (64, 64)), ((17, 23), (40, 31))])
def test_antialiased_resizing_equals_diffusers(source, target):
    from helpers_torch import diffusers, torch  # noqa: F401
    from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as svd

    image = np.random.default_rng(0).random((2, *source, 3)).astype(np.float32) * 2 - 1
    expected = svd._resize_with_antialiasing(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()), target)
    expected = expected.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(resize.resize_antialiased(image, target), expected, atol=1e-5)
    np.testing.assert_allclose(prepare((image + 1) / 2, target), normalise(jnp.asarray((expected + 1) / 2)), atol=2e-5)
    bicubic = partial(torch.nn.functional.interpolate, size=target, mode="bicubic", align_corners=False)
    expected = bicubic(torch.from_numpy(image.transpose(0, 3, 1, 2).copy())).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(resize.resize_bicubic(image, target), expected, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("size", [(300, 500), (231, 229), (60, 90), (224, 224), (500, 301)])
def test_clip_view_equals_the_published_image_processor(size):
    from helpers_torch import transformers  # noqa: F401
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3)).astype(np.uint8)
    expected = CLIPImageProcessorPil()(list(frames), return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    found = ClipView()({"video": frames}, np.random.default_rng(0))["clip_video"]
    np.testing.assert_allclose(normalise(found.astype(np.float32) / 255), expected, atol=1e-5)
