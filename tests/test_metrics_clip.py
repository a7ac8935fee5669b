"""magvid.metrics.clip: closed forms, the published code's numbers, Pillow's resizing, and gaps of every kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import nest
from magvid.data import clip as pillow
from magvid.metrics.clip import (
    ClipSmoothness,
    ClipText,
    cosine,
    relative_smoothness,
    released_similarity,
    released_smoothness,
)
from magvid.models.clip import CLIP, MEAN, STD, TextTower, VisionTower, shortest_side
from magvid.types import UserError
from tools import convert_clip

NAMES = ("clip_rs", "clip_rs_released", "clip_outer", "clip_outer_released")


def turning(degrees) -> np.ndarray:
    """Vectors (t 2), each turned against the one before by so many degrees, their lengths all different."""
    angle = np.radians(np.cumsum([20, *degrees]))
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1) * np.arange(1, len(angle) + 1)[:, None]


def test_relative_smoothness_of_known_angles():
    """Too smooth is as far from the real clip as too rough; 1 for equal steps, and 0 where neither cosine is above 0."""
    pred, real = turning([10, 60, 0, 120, 90]), turning([40, 30, 0, 150, 170])
    cos = lambda degrees: np.cos(np.radians(degrees))
    found = relative_smoothness(jnp.asarray(pred), jnp.asarray(real))
    np.testing.assert_allclose(found, [cos(40) / cos(10), cos(60) / cos(30), 1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(relative_smoothness(jnp.asarray(real), jnp.asarray(pred)), found, atol=1e-6)
    assert cosine(jnp.zeros(3), jnp.ones(3)) == 0


def numpy_released(pred, real) -> tuple[np.ndarray, np.ndarray]:
    """(smoothness (t-1), similarity (t)) of hidden states (t n d): cosines over the tokens, one for each of d."""
    alike = lambda a, b: np.sum(a * b, 1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    p, r = (alike(x[:-1], x[1:]) for x in (pred, real))
    return (np.minimum(p, r) / np.maximum(p, r)).mean(-1), alike(pred, real).mean(-1)


def test_the_released_forms_take_cosines_over_the_tokens():
    pred, real = np.random.default_rng(0).uniform(0, 1, (2, 3, 5, 4, 2)).astype(np.float32)
    found = zip(released_smoothness(pred, real), released_similarity(pred, real), strict=True)
    for p, r, both in zip(pred, real, found, strict=True):
        for ours, expected in zip(both, numpy_released(p, r), strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-5)


@pytest.mark.full
def test_the_published_codes_numbers(shared):
    from helpers_torch import torch

    golden = np.load(shared / "golden" / "diffusion" / "mavin_clip_rs.npz")
    pred, real = (golden[name].astype(np.float32) for name in ("pred", "gt"))  # (t n d)
    found = dict(
        official_clip_inner=released_smoothness(pred, real),
        official_clip_outer=released_similarity(pred, real),
        featdim_tokens=relative_smoothness(pred.swapaxes(0, 1), real.swapaxes(0, 1)),
        cls_token=relative_smoothness(pred[:, 0], real[:, 0]),
        meanpool=relative_smoothness(pred.mean(1), real.mean(1)),
    )
    for name, values in found.items():
        np.testing.assert_allclose(values.mean(), golden[name], atol=1e-5, err_msg=name)
    for axis in (0, 1, 2):
        theirs = torch.nn.functional.cosine_similarity(torch.from_numpy(pred), torch.from_numpy(real), dim=axis)
        np.testing.assert_allclose(cosine(pred, real, axis), theirs, atol=1e-6)


# Images -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source, size", [((50, 70), 32), ((24, 20), 32), ((32, 45), 32)])
def test_images_are_prepared_as_by_pillow(source, size):
    """Shrunk, enlarged, and only cut."""
    images = np.random.default_rng(0).integers(0, 256, (2, *source, 3), dtype=np.uint8)
    found = shortest_side(jnp.asarray(images / np.float32(255)), (size, size))
    levels = np.round(255 * (np.asarray(found) * STD + MEAN)).astype(int)
    apart = np.abs(levels - pillow.shortest_side(images, size))
    assert apart.max() <= 1 and np.mean(apart > 0) < 2e-3


def test_an_oblong_tower_sees_the_middle():
    images = np.zeros((1, 8, 20, 3), np.float32)
    images[:, :, 4:16] = 1
    np.testing.assert_allclose(shortest_side(jnp.asarray(images), (8, 12)) * jnp.asarray(STD) + jnp.asarray(MEAN), 1, atol=1e-6)


# The metric ---------------------------------------------------------------------------------------------------------


def tiny_tower(**options) -> VisionTower:
    return VisionTower(**dict(width=16, depth=1, heads=2, mlp=24, patch=4, image=(8, 8), projection=6) | options)


def tiny_metric(**options) -> ClipSmoothness:
    tower, rng = tiny_tower(), np.random.default_rng(0)
    flat = {n: rng.standard_normal(s).astype(np.float32) * 0.3 for n, s in convert_clip.shapes(tower).items()}
    return ClipSmoothness(tower, **options).with_weights({"vision": nest(flat)})


def clips(*given: str) -> dict[str, np.ndarray]:
    """A clip for each word, whose frames are given where it has a 1."""
    known = np.array([[frame == "1" for frame in word] for word in given])
    video, target = np.random.default_rng(1).integers(0, 256, (2, *known.shape, 10, 12, 3), dtype=np.uint8)
    given = np.broadcast_to(known[..., None, None, None], (*video.shape[:-1], 1))
    return dict(video=video, target=target, given=given)


def test_only_gaps_and_their_neighbours_count():
    """Gaps of other places and lengths in every clip; two in one; one at an end; in two clips none, which are left out."""
    metric, batch = tiny_metric(), clips("110011", "101101", "111000", "111111", "000000")
    found = metric.features(batch)
    assert set(found) == set(NAMES) and all(len(values) == 3 for values in found.values())
    images = lambda video: shortest_side(jnp.asarray(video.reshape(-1, 10, 12, 3) / np.float32(255)), (8, 8))
    with jax.default_matmul_precision("highest"):
        encode = jax.jit(lambda video: metric.vision.apply({"params": metric.params}, images(video)))
        pred, real = (encode(batch[name]) for name in ("video", "target"))
    gaps, pairs, near = [[2, 3], [1, 4], [3, 4, 5]], [[1, 2, 3], [0, 1, 3, 4], [2, 3, 4]], [range(1, 5), range(6), range(2, 6)]
    for i, chosen in enumerate(zip(pairs, pairs, gaps, near, strict=True)):
        frames = slice(6 * i, 6 * i + 6)
        p, r = (np.asarray(e.embedding, np.float64)[frames] for e in (pred, real))
        p, r = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (p, r))
        c, d = ((x[:-1] * x[1:]).sum(1) for x in (p, r))
        released = numpy_released(*(np.asarray(e.tokens, np.float64)[frames] for e in (pred, real)))
        expected = (np.minimum(c, d) / np.maximum(c, d), released[0], (p * r).sum(1), released[1])
        for name, values, at in zip(NAMES, expected, chosen, strict=True):
            np.testing.assert_allclose(found[name][i], values[list(at)].mean(), rtol=1e-4, err_msg=name)
    floats = {k: v / np.float32(255) if v.dtype == np.uint8 else v for k, v in batch.items()}
    assert all(np.allclose(metric.features(floats)[name], found[name], atol=1e-5) for name in NAMES)


def test_the_real_transition_is_perfect_and_intervals_cover_the_mean():
    metric = tiny_metric(resamples=50)
    batch = clips("100001", "110011", "100011")
    numbers = metric.result(metric.features({**batch, "video": batch["target"]}))
    assert numbers == pytest.approx({n + end: 1.0 for n in NAMES for end in ("", "_low", "_high")}, abs=1e-5)
    numbers = metric.result(metric.features(batch))
    assert all(numbers[f"{n}_low"] < numbers[n] < numbers[f"{n}_high"] < 1 for n in NAMES)
    assert numbers == metric.result(metric.features(batch))


def test_nothing_is_said_without_a_gap():
    metric = ClipSmoothness(tiny_tower())  # nothing is computed, so no weights are needed
    batch = clips("1111", "0000")
    assert metric.features(batch) == {}
    assert metric.features({k: v for k, v in batch.items() if k != "given"}) == {}
    corner = batch["given"].copy()
    corner[1, :, 0, 0] = True  # of every frame something is given
    assert metric.features({**batch, "given": corner}) == {}


def test_errors_name_the_remedy():
    with pytest.raises(UserError, match="no projection: convert one that has, clip_l_vision_projected"):
        ClipSmoothness(tiny_tower(projection=None))
    with pytest.raises(UserError, match=r"needs the weights of its tower: in the config, vision=dict\(run="):
        ClipSmoothness(tiny_tower()).with_weights({})


def tiny_scores(**options) -> ClipText:
    text = TextTower(vocab=9, length=5, width=12, depth=1, heads=2, mlp=16, projection=6)
    clip, rng = CLIP(text, tiny_tower()), np.random.default_rng(0)
    flat = {n: rng.standard_normal(s).astype(np.float32) * 0.3 for n, s in convert_clip.shapes(clip).items()}
    return ClipText(clip, **options).with_weights({"clip": nest(flat)})


def test_frames_fit_their_own_text_and_each_other():
    metric = tiny_scores(resamples=50)
    video = np.random.default_rng(1).integers(0, 256, (2, 3, 10, 12, 3), dtype=np.uint8)
    ids = np.array([[7, 3, 1, 8, 0], [7, 2, 8, 8, 8]])  # 8 ends a text
    found = metric.features(dict(video=video, text_ids=ids))
    with jax.default_matmul_precision("highest"):
        images = shortest_side(jnp.asarray(video.reshape(-1, 10, 12, 3) / np.float32(255)), (8, 8))
        frames = np.asarray(metric.clip.vision.apply({"params": metric.params["vision"]}, images).embedding, np.float64).reshape(2, 3, -1)
        text = np.asarray(metric.clip.text.apply({"params": metric.params["text"]}, jnp.asarray(ids)).embedding, np.float64)
    frames, text = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (frames, text))
    for i in range(2):
        np.testing.assert_allclose(found["clip_text"][i], (frames[i] @ text[i]).mean(), rtol=1e-4)
        np.testing.assert_allclose(found["clip_consistency"][i], np.mean([frames[i, k] @ frames[i, k + 1] for k in range(2)]), rtol=1e-4)
    filled = metric.features(dict(video=video, text_ids=np.where([[0, 0, 0, 0, 1], [0, 0, 0, 1, 1]], [[5], [0]], ids)))
    np.testing.assert_array_equal(filled["clip_text"], found["clip_text"])  # what stands behind the end is not read
    numbers = metric.result(found)
    assert all(numbers[f"{n}_low"] <= numbers[n] <= numbers[f"{n}_high"] for n in ("clip_text", "clip_consistency"))


def test_a_still_video_is_consistent_a_picture_has_no_next_frame_and_without_a_text_nothing_is_said():
    metric = tiny_scores()
    still = np.random.default_rng(1).integers(0, 256, (2, 1, 10, 12, 3), dtype=np.uint8)
    ids = np.full((2, 5), 8)
    np.testing.assert_allclose(metric.features(dict(video=still.repeat(4, 1), text_ids=ids))["clip_consistency"], 1, atol=1e-6)
    assert set(metric.features(dict(video=still, text_ids=ids))) == {"clip_text"}
    assert metric.features(dict(video=still)) == {}
    with pytest.raises(UserError, match=r"need the weights of both towers: in the config, clip=dict\(run="):
        ClipText(metric.clip).with_weights({})


def test_frames_are_compared_with_the_pictures_of_their_subject():
    """Where there are such, each frame with each; not of edits, whose pictures are what stays."""
    metric, rng = tiny_scores(resamples=50), np.random.default_rng(1)
    video, entities = rng.integers(0, 256, (3, 2, 10, 12, 3), dtype=np.uint8), rng.integers(0, 256, (3, 4, 18, 15, 3), dtype=np.uint8)
    valid, stays = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool), np.zeros((3, 2, 10, 12), bool)
    batch = dict(video=video, text_ids=np.full((3, 5), 8), entities=entities, entity_valid=valid, stays=stays)

    def embedded(images):
        with jax.default_matmul_precision("highest"):
            prepared = shortest_side(jnp.asarray(images / np.float32(255)), (8, 8))
            return np.asarray(metric.clip.apply({"params": metric.params}, prepared, method="embed_images"), np.float64)

    found = metric.features(batch)
    expected = [(embedded(video[i]) @ embedded(entities[i, : 2 - i]).T).mean() for i in range(2)]
    np.testing.assert_allclose(found["clip_subject"], expected, rtol=1e-4)
    assert len(found["clip_text"]) == 3
    stays[0, 0, 2, 3] = True
    np.testing.assert_allclose(metric.features(batch)["clip_subject"], expected[1:], rtol=1e-4)
    assert "clip_subject" not in metric.features(batch | dict(stays=~stays)) and "clip_subject" not in metric.features(batch | dict(entity_valid=valid & False))
    assert metric.result(found)["clip_subject"] == pytest.approx(np.mean(expected), rel=1e-4)


@pytest.mark.full
def test_scores_of_texts_are_those_of_transformers():
    from helpers_torch import torch, transformers

    sizes = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, projection_dim=10)
    text = dict(sizes, vocab_size=50, max_position_embeddings=9, hidden_act="quick_gelu", eos_token_id=49)
    torch.manual_seed(0)
    both = transformers.CLIPConfig(text_config=text, vision_config=dict(sizes, hidden_act="quick_gelu", image_size=28, patch_size=14), projection_dim=10)
    theirs = transformers.CLIPModel(both).eval()
    for parameter in theirs.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    towers = CLIP(TextTower(50, 9, 24, 2, 3, 40, projection=10), VisionTower(24, 2, 3, 40, patch=14, image=(28, 28), projection=10))
    weights = nest(convert_clip.convert(towers, {n: p.numpy() for n, p in theirs.state_dict().items()}))
    video = np.random.default_rng(0).integers(0, 256, (2, 3, 28, 28, 3), dtype=np.uint8)
    ids = np.array([[48, 3, 7, 12, 49, 0, 0, 0, 0], [48, 9, 49, 49, 49, 49, 49, 49, 49]])
    found = ClipText(towers).with_weights({"clip": weights}).features(dict(video=video, text_ids=ids))
    pixels = torch.from_numpy(np.moveaxis((video.reshape(-1, 28, 28, 3) / 255 - MEAN) / STD, -1, 1).astype(np.float32))
    with torch.no_grad():
        out = theirs(input_ids=torch.from_numpy(ids), pixel_values=pixels)
    frames, words = out.image_embeds.reshape(2, 3, -1).numpy(), out.text_embeds.numpy()
    for i in range(2):
        np.testing.assert_allclose(found["clip_text"][i], (frames[i] @ words[i]).mean(), atol=2e-5)
        np.testing.assert_allclose(found["clip_consistency"][i], (frames[i, :-1] * frames[i, 1:]).sum(-1).mean(), atol=2e-5)


@pytest.mark.full
@pytest.mark.parametrize("size, tolerance", [((28, 28), 2e-5), ((40, 52), 1e-3)])
def test_from_frames_to_numbers_as_with_transformers(size, tolerance):
    """The published script's lines, on transformers' tower and image processor. Without resizing all but exact."""
    from helpers_torch import torch, transformers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    sizes = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, projection_dim=10)
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(**sizes, hidden_act="quick_gelu", image_size=28, patch_size=14)
    theirs = transformers.CLIPVisionModelWithProjection(config).eval()
    for parameter in theirs.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    tower = VisionTower(24, 2, 3, 40, patch=14, image=(28, 28), projection=10)
    weights = nest(convert_clip.convert(tower, {n: p.numpy() for n, p in theirs.state_dict().items()}))
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})

    known = np.ones((2, 8, 1, 1, 1), bool)
    known[0, 2:5] = known[1, 4:7] = False
    walk = np.cumsum(np.random.default_rng(0).normal(0, 12, (2, 2, 8, *size, 3)), axis=2)
    video, target = np.clip(walk + 128, 0, 255).astype(np.uint8)
    given = np.broadcast_to(known, (*video.shape[:-1], 1))
    found = ClipSmoothness(tower).with_weights({"vision": weights}).features(dict(video=video, target=target, given=given))

    alike, ratio = torch.nn.functional.cosine_similarity, lambda a, b: (torch.min(a, b) / torch.max(a, b)).mean()
    for i, (start, end) in enumerate(((2, 5), (4, 7))):
        encode = lambda clip: theirs(torch.from_numpy(processor(list(clip), return_tensors="np")["pixel_values"]))
        with torch.no_grad():
            pred, real = (encode(x[i, start - 1 : end + 1]) for x in (video, target))
        states, embeds = ([getattr(e, name) for e in (pred, real)] for name in ("last_hidden_state", "image_embeds"))
        expected = dict(
            clip_rs=ratio(*(alike(x[:-1], x[1:], dim=-1) for x in embeds)),
            clip_rs_released=ratio(*(alike(x[:-1], x[1:]) for x in states)),
            clip_outer=alike(*embeds, dim=-1)[1:-1].mean(),
            clip_outer_released=alike(*states).mean(),
        )
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][i], value, rtol=tolerance, err_msg=name)
