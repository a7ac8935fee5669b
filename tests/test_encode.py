"""Training on cached tokens is training on the videos: the same stream, loss and update; encoding survives what happens."""

import dataclasses
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import pytest
import tiny_config
import tiny_runs

from helpers import drawn
from magvid import encode, job, train
from magvid.__main__ import main
from magvid.data.sprites import Sprites
from magvid.data.tokens import TokenRecord
from magvid.types import UserError

ONE = jax.devices()[:1]
TESTS = pathlib.Path(__file__).parent
PIXELS, GRID = (8, 16, 32), (2, 4, 8)


@dataclasses.dataclass(frozen=True)
class Slow(Sprites):
    """Each clip takes the environment's TEST_PAUSE seconds."""

    def __getitem__(self, i):
        time.sleep(float(os.environ.get("TEST_PAUSE", 0)))
        return super().__getitem__(i)


def views(clips=6, count=3, crop=PIXELS[1:], sprites="magvid.data.sprites:Sprites", **changes):
    source = dict(target=sprites, world="small", keys=("video", "label"), frames=8, height=20, width=40)
    augment = dict(target="magvid.data.pipeline:Augment", flip=True, crop=crop)
    changes = dict(seed=0) | changes
    return dict(
        target="magvid.data.views:Views", source=source, views=count, clips=clips, transforms=[augment], **changes
    )


def config(cache=None, tasks=tiny_config.ALL, **changes):
    """Ten tasks on clips of 8x16x32 cut out of larger ones, on the tokenizer of another run."""
    base = tiny_config.get_config(f"masked,{tiny_runs.tokenizer_run()}")
    base["objective"] |= dict(tasks=tasks)
    base["objective"]["transformer"] |= dict(length=int(np.prod(GRID)) + 2)
    view = dict(target="magvid.data.pipeline:MaskedView", tasks=len(tasks))
    base["data"]["train"] = dict(source=views(), transforms=[view], cache=cache)
    base["data"]["eval"] = dict(source=tiny_config.sprites("validation") | dict(width=32), transforms=[view], limit=8)
    return base | dict(metrics=[]) | changes


def prefixed(cache=None):
    """The autoregressive baseline with frame prediction alone: the condition tokens stand before the grid."""
    base = config(cache, tasks=("FP",))
    vocab = dict(target="magvid.types:Vocab", codebook=tiny_config.CODES, classes=18, specials=1)
    size = dict(vocab=tiny_config.CODES + 20, length=GRID[0] * 32 + 1 + 32 + 1, width=16, depth=1, heads=2, mlp=32)
    base["objective"] = dict(
        target="magvid.objectives.autoregressive:Autoregressive",
        tokenizer=base["objective"]["tokenizer"],
        transformer=dict(target="magvid.models.causal:CausalTransformer", dropout=0.0, **size),
        vocab=vocab,
        tasks=("FP",),
        conditioning=dict(target="magvid.masked.commit:Conditioning", prefix=True),
    )
    return base


def job_of(config, devices=ONE):
    return job.Job.from_config(job.check_config(config), devices)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """18 rows in shards of 5, encoded four clips at a time on one device."""
    out = tmp_path_factory.mktemp("tokens")
    encode.encode(config(), out, rows=5, batch=4, devices=ONE)
    return out


@pytest.fixture(scope="module")
def both(tokens):
    return job_of(config()), job_of(config(str(tokens)))


def test_the_folder_says_what_it_is(tokens):
    record = TokenRecord.read(tokens)
    assert [p.name for p in sorted(tokens.glob("*.arrayrecord"))] == [record.shard_name(k) for k in range(4)]
    assert record.data["clips"] == 6 and record.data["views"] == 3 and record.rows == 18
    assert tuple(record.clip) == PIXELS and tuple(record.latent) == GRID and record.codes == tiny_config.CODES
    assert [task["name"] for task in record.tasks] == list(tiny_config.ALL)
    run = tiny_runs.open_run(tiny_runs.tokenizer_run())
    assert record.tokenizer["hash"] == run.read("tokenizer")[1] and record.made["config"]["batch"] == 8
    assert record.sizes == [(tokens / record.shard_name(k)).stat().st_size for k in range(4)]


def test_a_cached_and_an_uncached_run_see_the_same_tokens(both):
    """Ids, condition ids, latent masks, classes, tasks and mask ratios of the stream, token for token."""
    plain, cached = both
    loaders = [j.loader() for j in both]
    params, tasks = plain.frozen, set()
    see = jax.jit(plain.objective.tokens), jax.jit(cached.objective.tokens)
    for _ in range(6):
        a, b = (next(loader) for loader in loaders)
        assert "video" in a and set(b) == set(a) - {"video"} | {"ids", "cond_ids"}
        for key in ("task", "ratio", "label", "index"):
            np.testing.assert_array_equal(a[key], b[key])
        for x, y in zip(see[0](params, a), see[1]({}, b), strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)
        tasks |= set(a["task"].tolist())
    assert tasks == set(range(10)) and loaders[0].get_state() == loaders[1].get_state()
    assert len(np.unique(b["ids"])) > 2  # not of one token alone
    for loader in loaders:
        loader.close()


def step_of(one: job.Job):
    """(state after a step, metrics, the lowered step)."""
    loader = one.loader()
    batch = next(loader)
    loader.close()
    prepared = one.prepare(batch)
    step, batch = one.step(prepared), job.sharding.global_batch(batch, one.mesh)
    lowered = step.lower(prepared.like, batch).as_text()
    state, metrics, _ = step(prepared.init(), batch)
    return jax.device_get(state.params), jax.device_get(metrics), lowered


def check_same_step(plain, cached):
    (params, metrics, text), (params2, metrics2, text2) = step_of(plain), step_of(cached)
    chex.assert_trees_all_close(params, params2, rtol=1e-6, atol=1e-7)
    chex.assert_trees_all_close(metrics, metrics2, rtol=1e-6)
    assert metrics["loss"] > 1 and "stablehlo.convolution" in text and "stablehlo.convolution" not in text2


def test_a_step_on_tokens_is_that_on_videos_without_the_tokenizer(both):
    check_same_step(*both)


def test_a_prefix_is_made_of_cached_tokens(tokens):
    """Another objective, and one of the ten tasks."""
    check_same_step(job_of(prefixed()), job_of(prefixed(str(tokens))))


def files(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.arrayrecord"))}


def test_tasks_drawn_once_per_batch(tokens):
    """As the official release does; such a draw reads where in the stream a record stands."""
    grouped = config(str(tokens))
    grouped["data"]["train"]["transforms"][0] |= dict(group=8)
    loader = job_of(grouped).loader()
    batch = next(loader)
    loader.close()
    assert len(set(batch["task"].tolist())) == 1 and "ids" in batch


def test_eight_devices_write_what_one_writes(tokens, tmp_path):
    record = encode.encode(config(), tmp_path, rows=5, batch=5)  # rounded up to one clip per device
    assert files(tmp_path) == files(tokens) and record.sizes == TokenRecord.read(tokens).sizes


def slow(cache=None):
    base = config(cache)
    base["data"]["train"]["source"] = views(sprites="test_encode:Slow")
    return base


def command(out, pause):
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    env = os.environ | dict(PYTHONPATH=path, TEST_PAUSE=str(pause), JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="1")
    env |= dict(JAX_COMPILATION_CACHE_DIR=jax.config.jax_compilation_cache_dir or "")
    script = "import json, sys; from magvid.encode import encode; "
    script += "encode(json.loads(sys.argv[1]), sys.argv[2], rows=5, batch=4)"
    return dict(args=[sys.executable, "-c", script, json.dumps(slow()), str(out)], env=env)


def test_a_killed_encode_goes_on_where_it_was(tokens, tmp_path):
    process = subprocess.Popen(**command(tmp_path, 0.2))
    try:
        while len(list(tmp_path.glob("tokens-0*"))) < 2:  # threads write them: the second may be there before the first
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    kept = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("tokens-0*")}
    assert 2 <= len(kept) < 4 and TokenRecord.read(tmp_path).sizes is None
    with pytest.raises(UserError, match="are not complete: run `magvid encode` again"):
        job_of(slow(str(tmp_path))).loader()
    said = []
    encode.encode(slow(), tmp_path, batch=4, devices=ONE, on_progress=lambda *a: said.append(a))
    assert files(tmp_path) == files(tokens)
    assert {n: (tmp_path / n).stat().st_mtime_ns for n in kept} == kept and said[-1][0] == said[-1][1] < 5


def test_a_damaged_shard_is_made_again(tokens, tmp_path):
    shutil.copytree(tokens, tmp_path / "t")
    path = tmp_path / "t" / TokenRecord.read(tokens).shard_name(2)
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)
    said = []
    encode.encode(config(), tmp_path / "t", batch=4, devices=ONE, on_progress=lambda *a: said.append(a))
    assert files(tmp_path / "t") == files(tokens) and [a[:2] for a in said] == [(1, 2), (2, 2)]
    encode.encode(config(), tmp_path / "t", devices=ONE, on_progress=pytest.fail)  # nothing is left to do


def without(key):
    changed = config()
    del changed["data"][key]
    return changed


def changed(split="train", **changes):
    base = config()
    base["data"][split]["source"] = views(**changes)
    return base


def trained_together():
    base = config()
    base["objective"]["tokenizer"] = tiny_config.tokenizer()
    base["optim"]["tokenizer"] = base["optim"]["transformer"]
    return base


def drawn_anew():
    base = config()
    base["data"]["train"]["source"] = dict(target="test_data_pipeline:Cropping")
    return base


def tokenizer_alone():
    return tiny_config.get_config("tokenizer")


def too_short():
    base = config()
    base["objective"]["transformer"]["length"] = 9
    return base


ENCODE = {
    "the config has no data.eval: there is nothing": (lambda: without("eval"), dict(split="eval")),
    '--split="test" is unknown: use train or eval': (config, dict(split="test")),
    "VQGAN learns from videos: there is nothing to keep": (tokenizer_alone, {}),
    "tokens can be kept where the tokenizer is frozen": (trained_together, {}),
    "Cropping draws another view of a clip each time": (drawn_anew, {}),
    "transformer.length=9, but clips of": (too_short, {}),
    "holds other tokens: data.views is 3 there, 2 here.*another --out": (lambda: changed(count=2), {}),
    "holds other tokens: tasks are FP, FI, .*, CFP there, FP here": (lambda: config(tasks=("FP",)), {}),
    "holds other tokens: rows_per_shard is 5 there, 6 here": (config, dict(rows=6)),
}


@pytest.mark.parametrize("message", ENCODE)
def test_what_cannot_be_encoded_is_named(tokens, message):
    make, options = ENCODE[message]
    before = files(tokens)
    with pytest.raises((UserError, ValueError), match=message):
        encode.encode(make(), tokens, devices=ONE, **options)
    assert files(tokens) == before


def test_foreign_shards_are_left_alone(tmp_path):
    (tmp_path / "tokens-00000-of-00001.arrayrecord").write_text("mine")
    with pytest.raises(UserError, match="holds tokens-00000-of-00001.arrayrecord without tokens.json"):
        encode.encode(config(), tmp_path, devices=ONE)


TRAIN = {
    "data.views is 3 there, 4 here": dict(count=4),
    "data.clips is 6 there, 5 here": dict(clips=5),
    "data.source.seed is 0 there, 1 here; data.first is": dict(seed=1),
    r"latent is \[2, 4, 8\] there": dict(crop=(20, 40)),
}


@pytest.mark.parametrize("message", TRAIN)
def test_other_data_than_those_of_the_tokens_are_refused(tokens, tmp_path, message):
    other = changed(**TRAIN[message])
    other["data"]["train"]["cache"] = str(tokens)
    with pytest.raises(UserError, match=f"are not those of this run: .*{message}.*run `magvid encode` again"):
        train.train(other, tmp_path / "run", devices=ONE)
    assert not (tmp_path / "run").exists()  # before training starts


def test_another_tokenizer_and_other_tasks_are_refused(tokens, tmp_path):
    """The tokenizer of the run has been trained on."""
    run = shutil.copytree(tiny_runs.tokenizer_run(), tmp_path / "vq")
    longer = tiny_config.get_config("tokenizer") | dict(steps=3, eval_every=2)
    train.train(longer, run)
    other = config(str(tokens))
    other["objective"]["tokenizer"] = dict(run=str(run))
    with pytest.raises(UserError, match=r"tokenizer.hash is \w+ there, \w+ here"):
        train.train(other, tmp_path / "run", devices=ONE)
    with pytest.raises(UserError, match="task FP5 is not there, which has FP, FI"):
        train.train(config(str(tokens), tasks=("FP", "FP5")), tmp_path / "run", devices=ONE)
    with pytest.raises(UserError, match=f"there are no tokens in {tmp_path}/gone"):
        train.train(config(f"{tmp_path}/gone"), tmp_path / "run", devices=ONE)
    alone = tokenizer_alone()
    alone["data"]["train"]["cache"] = str(tokens)
    with pytest.raises(UserError, match="VQGAN learns from videos"):
        train.train(alone, tmp_path / "run", devices=ONE)


def test_held_out_losses_are_the_same_on_tokens(tokens, tmp_path):
    """Tokens of the evaluation split: `limit` clips, of one view each."""
    plain = config(tasks=("FP", "CG"))
    record = encode.encode(plain, tmp_path, split="eval", devices=ONE)
    assert record.rows == 8 and record.data["views"] == 1
    cached = config(tasks=("FP", "CG"))
    cached["data"]["eval"]["cache"] = str(tmp_path)
    losses = []
    for one in (job_of(plain), job_of(cached)):
        batches = list(one.held_out())
        losses.append([one.eval_step()({**one.frozen, **weights(one)}, {}, b, jax.random.key(0), 0) for b in batches])
    assert len(losses[0]) == 1 and "video" not in batches[0]
    chex.assert_trees_all_close(*jax.device_get(losses), rtol=1e-6)
    cached["data"]["eval"]["cache"] = str(tokens)
    with pytest.raises(UserError, match="data.clips is 6 there, 8 here"):
        job_of(cached).loader()  # before training, not at the first evaluation


def weights(one):
    params = drawn(one.objective.init, jax.random.key(0), {"video": np.zeros((1, *PIXELS, 3), np.uint8)})
    return {"transformer": params["transformer"]}


def test_a_run_may_change_to_tokens(tokens):
    """Nothing else than the speed changes, so a run goes on with them."""
    assert job.differences(job.check_config(config()), job.check_config(config(str(tokens)))) == []


CONFIG = """
import test_encode
def get_config(arg=None):
    return test_encode.config(tasks=("FP", "CG"))
"""


def test_the_command_line_encodes_trains_and_samples(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.py").write_text(CONFIG)
    assert main(["encode", "--config=two.py", "--out=tokens", "--rows=7", "--config.data.train.source.clips=5"]) == 0
    out = capsys.readouterr().out
    assert "5 clips x 3 views, about 0.0 MB" in out and "encoded: 15 rows" in out and "(tasks: FP, CG)" in out
    assert "--config.data.train.cache=tokens" in out
    trains = ["train", "--config=two.py", "--workdir=run", "--config.data.train.cache=tokens"]
    assert main(trains) == 2 and "data.clips is 5 there, 6 here" in capsys.readouterr().err
    assert main([*trains, "--config.data.train.source.clips=5"]) == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["data"]["train"]["cache"] == "../tokens"  # relative, as the paths of runs
    assert json.loads((tmp_path / "run/data.json").read_text())["clip"]["width"] == 32
    shutil.rmtree("tokens")  # sampling needs no tokens
    assert main(["sample", "--run=run", "--task=FP", "--number=1", "--steps=2", "--format=gif"]) == 0
    assert len(list((tmp_path / "run/samples").glob("*.gif"))) == 2


SCRIPT = """
import json, sys, jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]), heartbeat_timeout_seconds=10, shutdown_timeout_seconds=10)
from magvid.encode import encode
encode(json.loads(sys.argv[3]), sys.argv[4], rows=5, batch=4)
"""


@pytest.mark.full
def test_two_processes_share_the_shards(tokens, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    env = command(tmp_path, 0)["env"] | dict(JAX_NUM_CPU_DEVICES="2")
    arguments = [json.dumps(config()), str(tmp_path)]
    start = lambda i: subprocess.Popen(
        [sys.executable, "-c", SCRIPT, address, str(i), *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    processes = [start(i) for i in range(2)]
    try:
        out = [p.communicate(timeout=180)[0].decode() for p in processes]
    finally:
        for p in processes:
            p.kill()
    assert [p.returncode for p in processes] == [0, 0], "\n".join(out)
    assert files(tmp_path) == files(tokens) and TokenRecord.read(tmp_path).sizes
