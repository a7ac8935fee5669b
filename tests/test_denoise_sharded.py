"""A diffusion model's training step on eight devices equals that on one: data, FSDP, tensor axes, and all at once."""

import math

import chex
import jax
import pytest

import helpers_objective
from configs import clip_sprites, latent, unets
from magvid import job, sharding
from magvid.build import build
from test_sharding import steps
from tools import convert_unet

TINY = dict(channels=(16, 32), layers=1, attention_levels=(False, True), heads=(2, 4), groups=4, out_channels=3)
TEXT = dict(
    target="magvid.models.clip:TextTower", vocab=clip_sprites.VOCABULARY, length=24, width=16, depth=1, heads=2, mlp=32
)
CLIPS = dict(target="magvid.data.sprites:Sprites", world="small", frames=5, height=16, width=24, keys=("video", "caption"))


def config(preset: str) -> dict:
    """Pixels in place of latents: all that is sharded is the U-Net and a text tower, trained too."""
    spec = {**unets.PRESETS[preset], **TINY, "epsilon": 1e-5, "time_embedding": unets.sd21["time_embedding"]}
    spec["attention"] = dict(spec["attention"], tokens=("text",))
    if "stem" in spec:
        spec["stem"] = dict(spec["stem"], heads=2, head_dim=8)
    objective = dict(
        target="magvid.objectives.denoise:Denoise",
        network=dict(target="magvid.models.unet:UNet", **spec),
        conditioners=[dict(target="magvid.models.conditioners:TextTokens", text=TEXT)],
        drop=[[["text"], 0.2]],
        trained=["network", "text"],
    )
    data = dict(train=dict(source=CLIPS, transforms=[clip_sprites.TOKENIZER], workers=0))
    rules = [[".*", dict(peak=1e-3, decay="constant")]]
    optim = {group: dict(optimizer=dict(name="adam", eps=1e-4), rules=rules) for group in ("network", "text")}
    return helpers_objective.config(objective=objective, data=data, optim=optim, batch=8, ema=0.9, ema_groups=["network"])


MESHES = {
    "data": ({"data": -1}, [(".*", None)]),
    "FSDP": ({"data": -1}, [(".*", "fsdp")]),
    "tensor": ({"data": 4, "model": 2}, unets.TENSOR),
    "all": ({"data": 2, "fsdp": 2, "model": 2}, unets.TENSOR),
}

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def alone():
    """Of a preset, on one device: what makes the initial state, and what two steps make of it."""
    made = {}

    def of(preset):
        if preset not in made:
            the_job = job.Job.from_config(job.check_config(config(preset)), jax.devices()[:1])
            begin = the_job.prepare(next(the_job.loader())).init
            made[preset] = begin, steps(config(preset), jax.devices()[:1], begin)
        return made[preset]

    return of


@pytest.mark.parametrize("kind", MESHES)
@pytest.mark.parametrize("preset", ["svd", "modelscope"])
def test_eight_devices_equal_one(alone, preset, kind):
    mesh, rules = MESHES[kind]
    begin, one = alone(preset)
    if kind == "all":  # the initial parameters are equal, too; a program for each mesh takes half a minute to compile
        begin = None
    many = steps({**config(preset), "mesh": mesh, "sharding": rules}, jax.devices()[:8], begin)
    for a, b in ((one[0].params, many[0].params), (one[0].ema, many[0].ema), (one[1], many[1])):
        chex.assert_trees_all_close(jax.device_get(a), jax.device_get(b), rtol=2e-3, atol=2e-5)
    kernels = many[0].params["network"]["mid_block"]["attentions_0"]["transformer_blocks_0"]
    if "model" in mesh:
        assert kernels["attn1"]["to_q"]["kernel"].sharding.shard_shape((32, 32)) == (32, 16)
        assert kernels["ff"]["out"]["kernel"].sharding.shard_shape((128, 32)) == (64, 32)
    if kind == "FSDP":  # small arrays stay whole, and all others are divided, the optimiser's with them
        for x in jax.tree.leaves((many[0].params, many[0].opt, many[0].ema)):
            part = x.size if x.size < sharding.FSDP_MIN_SIZE else x.size // 8
            assert x.addressable_shards[0].data.size == part, x.shape


@pytest.mark.parametrize("preset", ["svd", "modelscope"])
def test_a_device_holds_its_share_of_the_published_networks(preset):
    unet = build(latent.published("unet", preset))
    given = unets.INPUTS[preset]
    shapes = jax.eval_shape(lambda: unet.init(jax.random.key(0), *convert_unet.example(**given)))
    mesh = sharding.make_mesh({"data": 8})
    places = sharding.shardings(shapes, MESHES["FSDP"][1], mesh)
    pairs = list(zip(jax.tree.leaves(shapes), jax.tree.leaves(places), strict=True))
    held = sum(math.prod(place.shard_shape(x.shape)) for x, place in pairs)
    assert held <= 1.2 / 8 * sum(x.size for x, _ in pairs)
