"""A training step of every objective on 2, 4 and 8 devices equals that on one: the batch, parameters, heads and tokens or pixels spread over a mesh."""

import functools
import importlib
import json
import math
from collections.abc import Mapping

import chex
import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from benchmarks import faults
from configs import defaults
from magvid import ahead, cost, explain, job, runs, sharding
from magvid.build import build
from magvid.flags import load_config
from magvid.job import check_config
from magvid.types import UserError
from test_explain import ROOT

# {name: (config, argument)}, with smoke=1
OBJECTIVES = faults.OBJECTIVES
SHALLOW = ("diffusion", "adapters", "infilling", "entities")  # U-Nets of one level: that levels are halved and doubled is tested by "autoencoder"
EDGES = {"tokens": [["data", "fsdp"], "seq", None], "frames": [["data", "fsdp"], None, ["seq", "model"], None, None]}
DIVIDED = {  # {name: groups of which parameters lie over "model"}
    "GAN": {"tokenizer"}, "masked": {"transformer"}, "autoencoder": {"vae"}, "contrastive": {"clip", "temporal"}, "diffusion": {"network"},
    "adapters": {"adapters"}, "infilling": {"network"}, "entities": {"network", "resampler"}, "autoregressive": {"transformer"},
}  # fmt: skip
MESHES = {  # {devices: fields of the config}
    2: dict(mesh={"data": -1}),
    4: dict(mesh={"fsdp": -1}, sharding=[[".*", "fsdp"]]),
    8: dict(mesh={"fsdp": 2, "model": 2, "seq": 2}, sharding=defaults.TENSOR, activations=EDGES),
}


def planned(name: str, **fields) -> dict:
    """With the specs of other runs in the references' places, and a batch of 8."""
    config, arg = OBJECTIVES[name]
    made = importlib.import_module(f"configs.{config}").get_config(",".join(filter(None, ("smoke=1", arg)))).to_dict()
    made["objective"] = runs.planned(made["objective"], lambda spec: load_config(str(ROOT / spec)))
    if name in SHALLOW:
        made["objective"]["network"] |= dict(channels=[16], attention_levels=[True], heads=[1])
    # gradient descent at a rate of 0.03: with eps this large Adam divides by nothing else, and without b1 its mean is the gradient
    rules = [[".*", dict(peak=30.0, decay="constant")]]
    optim = {group: dict(optimizer=dict(name="adam", b1=0.0, eps=1e3), rules=rules) for group in made["optim"]}
    return check_config(made | dict(batch=8, microbatch=0, optim=optim, init=[], metrics=[], ema=0.9) | fields)


@functools.cache
def frozen(name: str) -> Mapping:
    """Random weights of the groups that are not trained, for all meshes the same; drawn here, as `init` takes long to compile."""
    config, rng = planned(name), np.random.default_rng(7)
    loader = opened(name, config, {}, 1).loader()
    first = sharding.numeric(next(loader))
    loader.close()
    shapes = jax.eval_shape(build(config["objective"]).init, jax.random.key(7), first)

    def draw(path, x):
        if path[-1].key in ("scale", "bias"):
            return np.full(x.shape, float(path[-1].key == "scale"), x.dtype)
        return np.asarray(rng.standard_normal(x.shape) / max(math.prod(x.shape[:-1]), 1) ** 0.5, x.dtype)

    return {g: jax.tree_util.tree_map_with_path(draw, tree) for g, tree in shapes.items() if g not in config["optim"]}


def opened(name: str, config: dict, weights: Mapping, devices: int) -> job.Job:
    return job.Job(config, build(config["objective"]), sharding.make_mesh(config["mesh"], jax.devices()[:devices]), weights, {})


def two_steps(name: str, devices: int, begin=None, **fields):
    """(the first state, or `begin` in its place; state and metrics after two steps)."""
    the_job = opened(name, planned(name, **fields), frozen(name), devices)
    loader = the_job.loader()
    prepared = the_job.prepare(next(loader))
    first = prepared.init() if begin is None else jax.device_put(begin, jax.tree.map(lambda x: x.sharding, prepared.like))
    state, first, step = first, jax.device_get(first), the_job.step(prepared)
    with jax.set_mesh(the_job.mesh):
        for _ in range(2):
            state, metrics, finite = step(state, sharding.global_batch(next(loader), the_job.mesh))
    loader.close()
    assert all(flags.all() for flags in finite.values())
    return first, state, metrics


def gradients(state) -> dict[str, np.ndarray]:
    """Those of the second step, which parameters that the first one moved have."""
    return {name: np.asarray(g) for name, g in flatten_dict({group: optax.tree.get(opt, "mu") for group, opt in state.opt.items()}, sep="/").items()}


def check_gradients(found: Mapping[str, np.ndarray], slopes: Mapping[str, np.ndarray], relative: float = 1e-3, absolute: float = 1e-6) -> None:
    """`relative` to the norm of each leaf, `absolute` to that of its group: biases before a norm have no gradient but of rounding errors."""
    norm, group = np.linalg.norm, lambda leaf: leaf.partition("/")[0]
    assert found.keys() == slopes.keys()
    whole = {g: norm([norm(x) for leaf, x in slopes.items() if group(leaf) == g]) for g in map(group, slopes)}
    assert all(whole.values())
    for leaf, slope in slopes.items():
        assert norm(found[leaf] - slope) <= relative * norm(slope) + absolute * whole[group(leaf)], leaf


@functools.cache
def alone(name: str):
    first, state, metrics = two_steps(name, 1)
    return first, gradients(state), *jax.device_get((state.params, state.ema, metrics))


@pytest.mark.full
@pytest.mark.parametrize("devices", MESHES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_many_devices_equal_one(name, devices):
    first, slopes, params, averages, metrics = alone(name)
    begin = None if devices == 8 and name not in SHALLOW else first  # on eight the first state is made there, which takes long to compile
    _, many, said = two_steps(name, devices, begin, **MESHES[devices])
    check_gradients(gradients(many), slopes)
    for before, after, others in ((first.params, params, many.params), (first.params, averages, many.ema)):
        moved, also = (jax.tree.map(lambda x, y: np.asarray(x) - y, tree, before) for tree in (after, jax.device_get(others)))
        chex.assert_trees_all_close(moved, also, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(metrics, jax.device_get(said), rtol=2e-4, atol=2e-5)
    if devices == 4:  # small arrays stay whole, and all others are divided, the optimiser's and the average with them
        for x in jax.tree.leaves((many.params, many.opt, many.ema)):
            assert x.addressable_shards[0].data.size == (x.size if x.size < sharding.FSDP_MIN_SIZE else x.size // 4), x.shape
    if devices == 8:
        assert {group for group, tree in many.params.items() if any("model" in str(x.sharding.spec) for x in jax.tree.leaves(tree))} >= DIVIDED[name]


@pytest.mark.full
@pytest.mark.parametrize("name", ["masked", "GAN"])
def test_accumulated_gradients_are_those_of_one_device(name):
    """Two parts of four examples, on one device, and on four, of which a pair has two at a time."""
    first, one, _ = two_steps(name, 1, microbatch=4)
    _, many, _ = two_steps(name, 4, first, mesh={"fsdp": 2, "model": 2}, sharding=defaults.TENSOR, microbatch=2)
    check_gradients(gradients(many), gradients(one))


@pytest.mark.full
def test_bfloat16_on_many_devices_is_as_on_one():
    """Within the rounding of 8 bits; that the numbers are of 8 bits shows in how far they are from float32's."""
    first, slopes, *_ = alone("masked")
    fields = dict(dtype="bfloat16")
    _, one, _ = two_steps("masked", 1, first, **fields)
    _, many, _ = two_steps("masked", 8, first, **fields, **MESHES[8])
    check_gradients(gradients(many), gradients(one), relative=5e-2, absolute=1e-3)
    norm = lambda a: np.linalg.norm([np.linalg.norm(x) for x in a.values()])
    apart = norm({leaf: x - slopes[leaf] for leaf, x in gradients(one).items()})
    assert apart > 1e-4 * norm(slopes)


FULL = {  # the largest programs, and what spreads all of their parameters
    "3D-VQ-L with its discriminator": ("vq3d_ucf101", "size=L,perceptual=0"),
    "transformer L": ("commit_ucf101", "size=L"),
    "MagDiff": ("magdiff_pexels", "tune=full"),
    "Stable Video Diffusion": ("svd", "tune=full"),
    "ModelScope": ("modelscope", "tune=full"),
}


@pytest.mark.full
@pytest.mark.parametrize("name", FULL)
def test_a_device_holds_its_share_of_the_published_models(name):
    """Parameters, optimiser and average of what is trained: at most 1.2 times an eighth."""
    config, arg = FULL[name]
    made = importlib.import_module(f"configs.{config}").get_config(arg).to_dict() | dict(mesh={"fsdp": -1}, sharding=[[".*", "fsdp"]])
    plan = lambda count: explain.Plan.of(check_config(made | dict(batch=8)), sharding.abstract_mesh({"fsdp": -1}, count), lambda spec: load_config(str(ROOT / spec)))
    one, eight = plan(1).held(), plan(8).held()
    total = sum(one[part] for part in ("parameters", "optimiser", "average"))
    assert sum(eight[part] for part in ("parameters", "optimiser", "average")) <= 1.2 * total / 8


@functools.cache
def collectives(name: str, how: str) -> Mapping:
    fields = {
        "data": dict(mesh={"data": 8}),
        "fsdp": dict(mesh={"fsdp": 8}, sharding=[[".*", "fsdp"]]),
        "tensor": dict(mesh={"data": 4, "model": 2}, sharding=[*defaults.TENSOR[:-1], [".*", None]]),
        "tokens": dict(mesh={"data": 4, "seq": 2}, activations=EDGES),
    }[how]
    the_job = opened(name, planned(name, **fields), frozen(name), 8)
    loader = the_job.loader()
    first = next(loader)
    loader.close()
    prepared = the_job.prepare(first)
    with jax.set_mesh(the_job.mesh):
        compiled = the_job.step(prepared).lower(prepared.like, sharding.global_batch(first, the_job.mesh)).compile()
    return ahead.collectives(compiled.as_text(), 8)


def trained_bytes(name: str) -> int:
    the_job = opened(name, planned(name), frozen(name), 1)
    loader = the_job.loader()
    like = the_job.prepare(next(loader)).like
    loader.close()
    return 4 * sum(x.size for x in jax.tree.leaves(like.params))


@pytest.mark.parametrize("name", ["masked", pytest.param("GAN", marks=pytest.mark.full)])
def test_what_is_sent_between_devices(name):
    """Data: gradients are summed, once. FSDP: parameters are gathered as well, once, and no activations are (the partitioner's own choice for the gradients of
    convolutions). Heads: what leaves a block is summed. Tokens or pixels: keys and values are
    gathered, edges exchanged.
    """
    data, fsdp, tensor, tokens = (collectives(name, how) for how in ("data", "fsdp", "tensor", "tokens"))
    weights = trained_bytes(name)
    assert set(data) == {"all-reduce"} and weights <= data["all-reduce"].result < 1.5 * weights
    frozen_too = weights + 4 * sum(x.size for x in jax.tree.leaves(frozen(name)))
    assert set(fsdp) <= {"all-reduce", "all-gather", "reduce-scatter"} and 0.5 * weights < fsdp["all-gather"].result <= 1.01 * frozen_too
    assert fsdp["all-reduce"].result < 1.5 * weights
    assert tensor["all-reduce"].count > data["all-reduce"].count and tensor["all-reduce"].result != data["all-reduce"].result
    assert set(tokens) > {"all-reduce"}


@pytest.mark.parametrize("policy", ["everything_saveable", "nothing_saveable"])
def test_remat_changes_no_number_and_keeps_what_it_says(policy):
    fields = dict(remat_policy=policy)

    def traced(**more):
        made = planned("masked", **fields)
        made["objective"]["transformer"] |= more
        the_job = opened("masked", made, frozen("masked"), 1)
        first = next(the_job.loader())
        prepared = the_job.prepare(first)
        arguments = prepared.like, sharding.global_batch(first, the_job.mesh)
        jaxpr, once = the_job.step(prepared).trace(*arguments).jaxpr, jax.jit(the_job.pure_step(prepared, remat=False)).trace(*arguments).jaxpr
        assert cost.recomputes(jaxpr) == ("remat" in more) and not cost.recomputes(once)
        assert not found or cost.flops(once) == found[0]  # what a step's speed is measured by
        found.append(cost.flops(jaxpr))
        return found[-1]

    found = []
    whole, again = traced(), traced(remat=True)
    assert again == whole if policy == "everything_saveable" else again > 1.02 * whole, (whole, again)


BAD = {
    json.dumps({"pixels": [None]}): "config.activations has no pixels: it may have tokens and frames",
    json.dumps({"tokens": ["data"]}): 'config.activations.tokens is ["data"]: give a list of mesh axes',
    json.dumps({"tokens": ["data", 2, None]}): "config.activations.tokens: 2 is no mesh axis, list of axes, or null",
    json.dumps({"tokens": ["data", ["seq", "data"], None]}): "data can divide one dimension, not two",
}


@pytest.mark.parametrize("activations", BAD)
def test_wrong_activations_are_named(activations):
    with pytest.raises(UserError) as error:
        planned("masked", activations=json.loads(activations))
    assert BAD[activations] in str(error.value)


@pytest.mark.parametrize("size", [(4, 3), (3, 4), (3, 5), (4, 4)])
@pytest.mark.parametrize("batch", [4, 3])
def test_the_gradient_of_frames_that_a_mesh_does_not_divide(size, batch):
    """h and w over axes of their own, one of which does not divide: the others' parts must not be repeated over it."""
    rng = np.random.default_rng(0)
    x, k = (rng.standard_normal(shape).astype(np.float32) for shape in ((batch, 2, *size, 4), (3, 3, 3, 4, 5)))

    def loss(k, x):
        with sharding.edges({"frames": ["data", None, "seq", "model", None]}):
            y = jax.lax.conv_general_dilated(sharding.edge(x), k, (1, 1, 1), "SAME", dimension_numbers=("NTHWC", "THWIO", "NTHWC"))
            return (sharding.edge(jax.numpy.tanh(y)) ** 2).mean()

    expected = jax.grad(loss)(k, x)
    mesh = sharding.make_mesh({"data": 2, "seq": 2, "model": 2})
    with jax.set_mesh(mesh):
        found = jax.jit(jax.grad(loss), out_shardings=sharding.replicated(mesh))(*jax.device_put((k, x), sharding.replicated(mesh)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_frames_that_are_repeated_are_refused():
    frames = [["data"], None, "seq", None, None]
    config = planned("GAN", mesh={"data": 2, "seq": 2, "model": 2}, activations={"frames": frames})
    with pytest.raises(UserError, match='without model of the mesh: frames that are spread over pixels are spread over all axes, such as .*"seq", "model"'):
        opened("GAN", config, {}, 8)
    opened("GAN", planned("GAN", mesh={"data": 4, "seq": 2, "model": 1}, activations={"frames": frames}), {}, 8)


def test_a_wrong_policy_is_named():
    with pytest.raises(UserError, match='config.remat_policy is "dots": use null or one of .*dots_saveable'):
        planned("masked", remat_policy="dots")
