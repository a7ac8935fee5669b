"""Checkpoints come back bit for bit, on any mesh, or not at all; damage is noticed and the step before it used."""

import contextlib
import gc
import pathlib
import re
import resource
import shutil
import threading

import chex
from helpers import drawn
import helpers_objective as helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magvid import optim, sharding, state
from magvid.checkpoints import CheckpointError, Checkpoints, merge
from magvid.types import UserError

DATA = {"global_next_index": 80}


@pytest.fixture(scope="module")
def start():
    """A state whose leaves all differ, with a bfloat16 leaf and an extra."""
    objective = helpers.ToyGan()
    params = drawn(objective.init, jax.random.key(0), None)
    trained = {g: params[g] for g in ("generator", "discriminator")}
    trained["discriminator"]["low"] = jnp.linspace(0, 1, 24, dtype=jnp.bfloat16).reshape(4, 6)
    optimisers = {
        g: optim.make(dict(rules=[("bias", None), (".*", dict(peak=1.0))]), trained[g], 10, g) for g in trained
    }
    full = state.init_state(
        trained,
        {"features": params["features"]},
        {"real": jnp.float32(0.5)},
        jax.random.key(7),
        optimisers,
        ("generator",),
    )
    return full.replace(opt=jax.tree.map(lambda x: x + 1, full.opt), ema=jax.tree.map(lambda x: x * 2, full.ema))


def at(train_state, step):
    return train_state.replace(step=jnp.int32(step), params=jax.tree.map(lambda x: x * step, train_state.params))


def like(train_state, mesh=None, rules=((".*", None),)):
    mesh = mesh or sharding.make_mesh({"data": 1}, jax.devices()[:1])
    places = sharding.state_shardings(train_state, rules, mesh)
    shapes = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), train_state, places)
    return shapes.replace(frozen=train_state.frozen)


@pytest.fixture(scope="module")
def saved(start, tmp_path_factory):
    """A folder with steps 1, 2 and 3; tests copy it."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Checkpoints(folder, keep=3, write=True)
    for step in (1, 2, 3):
        checkpoints.save(step, at(start, step), DATA | {"step": step}, {"features": {"run": "x", "hash": "y"}})
    checkpoints.wait()
    checkpoints.close()
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return pathlib.Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def open_(folder, **kwargs):
    said = []
    return Checkpoints(folder, say=said.append, **kwargs), said


def same(a, b):
    chex.assert_trees_all_equal(*(jax.device_get(s.replace(key=jax.random.key_data(s.key))) for s in (a, b)))


def test_round_trip_of_state_iterator_and_sources(start, folder):
    checkpoints, said = open_(folder)
    found, data, step = checkpoints.restore(like(start))
    same(found, at(start, 3))
    assert (data, step, said) == (DATA | {"step": 3}, 3, [])
    assert found.params["discriminator"]["low"].dtype == jnp.bfloat16 and found.frozen is start.frozen
    assert checkpoints.meta(3)["frozen"] == {"features": {"run": "x", "hash": "y"}}
    assert not list(folder.glob("*/frozen"))


def test_restores_onto_another_mesh(start, tmp_path):
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "model": 2})
    rules = [("enter/kernel", ["fsdp", "model"]), (".*", None)]
    spread = jax.device_put(at(start, 5), sharding.state_shardings(start, rules, mesh))
    checkpoints, said = open_(tmp_path / "c", write=True)
    checkpoints.save(5, spread, DATA)
    checkpoints.wait()
    for other, sizes in (
        (like(start), (96, 48)),
        (like(start, mesh, [("enter", [None, "data"]), (".*", None)]), (96, 24)),
    ):
        found = checkpoints.restore(other)[0]
        same(found, at(start, 5))
        assert found.ema["generator"]["enter"]["kernel"].sharding.shard_shape((96, 48)) == sizes
    assert not said


def test_a_group_loads_alone_as_numpy(start, folder):
    checkpoints, _ = open_(folder)
    for item in ("opt", "train"):
        shutil.rmtree(folder / "3" / item, ignore_errors=True)
    chex.assert_trees_all_equal(
        checkpoints.group(3, "params", "generator"), jax.device_get(at(start, 3).params["generator"])
    )
    ema = checkpoints.group(3, "ema", "generator")
    assert isinstance(ema["enter"]["kernel"], np.ndarray) and "bias" not in ema["exit"]
    assert checkpoints.group(3, "ema", "discriminator") == {}


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


# what else is being read when a read fails has an end, and no traceback of its own
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_one_flipped_byte_in_any_file_never_restores_wrong_values(start, saved, tmp_path):
    """Each file of the newest step in turn: either its values are right, or step 2 comes back and the damage is
    said.
    """
    fell_back = 0
    wanted = like(start)
    for i, path in enumerate(sorted(p for p in (saved / "3").rglob("*") if p.is_file() and p.stat().st_size)):
        folder = shutil.copytree(saved, tmp_path / str(i))
        damage(folder / path.relative_to(saved))
        checkpoints, said = open_(folder)
        found, data, step = checkpoints.restore(wanted)
        same(found, at(start, step))
        assert data == DATA | {"step": step} and step in (2, 3), path
        assert len(said) == (step == 2) and all("step 3" in s and "using step 2" in s for s in said), path
        fell_back += step == 2
        checkpoints.close()
    gc.collect()  # the reports of failed reads belong to this test
    assert fell_back >= 6  # at least the arrays of three items, meta and data


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("item", ["params", "data", "meta"])
def test_truncated_and_missing_files_fall_back(start, folder, item):
    content = max(
        (folder / "3" / item).rglob("d/*" if item == "params" else "metadata"), key=lambda p: p.stat().st_size
    )
    content.write_bytes(content.read_bytes()[:20])
    shutil.rmtree(folder / "2" / item)
    checkpoints, said = open_(folder)
    found, _, step = checkpoints.restore(like(start))
    same(found, at(start, 1))
    assert step == 1 and "step 3" in said[0] and "step 2" in said[0]


def test_why_a_step_is_damaged_is_told_in_few_words(start, folder):
    newest, *_ = sorted((folder / "3" / "params").rglob("d/*"), key=lambda p: -p.stat().st_size)
    newest.write_bytes(newest.read_bytes()[:20])
    shutil.rmtree(folder / "2" / "ema")
    checkpoints, said = open_(folder)
    checkpoints.restore(like(start))
    assert re.fullmatch(rf"damaged checkpoint in {folder}, step 3: [a-z.]+ cannot be read \([^:]{{8,90}}\); step 2: its arrays cannot be read \(.*\): using step 1", said[0]), said[0]


def test_what_is_damaged_takes_no_place_of_those_that_are_kept(start, folder):
    """Whatever was not read as good is not one of the `keep` last: with 1 good and 2 damaged ones of three, all of the next saves would leave none."""
    damage(max((folder / "3" / "params").rglob("d/*"), key=lambda p: p.stat().st_size))
    shutil.rmtree(folder / "2" / "meta")
    checkpoints, _ = open_(folder, keep=2, write=True)
    assert checkpoints.restore(like(start))[2] == 1
    checkpoints.save(7, at(start, 7), DATA)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 7] and {p.name for p in folder.glob("set-aside-*")} == {"set-aside-2", "set-aside-3"}
    checkpoints.save(8, at(start, 8), DATA)
    checkpoints.wait()
    assert checkpoints.steps() == [7, 8]
    same(checkpoints.restore(like(start))[0], at(start, 8))


def test_what_is_damaged_may_be_moved_away_by_hand(start, folder):
    shutil.rmtree(folder / "3" / "params")
    checkpoints, _ = open_(folder, write=True)
    assert checkpoints.restore(like(start))[2] == 2
    shutil.rmtree(folder / "3")
    checkpoints.save(7, at(start, 7), DATA)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2, 7] and not list(folder.glob("set-aside-*"))


def test_what_was_found_damaged_is_left_out_until_it_is_saved_anew(start, folder):
    shutil.rmtree(folder / "3" / "params")
    checkpoints, said = open_(folder, write=True)
    assert checkpoints.restore(like(start))[2] == 2
    assert checkpoints.newest(lambda step: step) == 2 and len(said) == 1  # nothing of step 3, and it is said once
    checkpoints.save(3, at(start, 3), DATA)
    checkpoints.wait()
    assert checkpoints.restore(like(start))[2] == 3 and len(said) == 1


def test_empty_step_and_left_over_temporary_folders(start, folder):
    (folder / "4").mkdir()
    (folder / "5.orbax-checkpoint-tmp").mkdir()
    checkpoints, said = open_(folder, write=True)
    assert not (folder / "5.orbax-checkpoint-tmp").exists()  # already, so that no thread outlives an early error
    assert checkpoints.restore(like(start))[2] == 3 and "step 4" in said[0]


def test_keeps_the_newest_and_replaces_an_abandoned_future(start, folder):
    checkpoints, _ = open_(folder, keep=2, write=True)
    abandoned = {file.relative_to(folder / "3"): file.read_bytes() for file in (folder / "3").rglob("*") if file.is_file()}
    checkpoints.save(2, at(start, 20), DATA)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2]
    same(checkpoints.restore(like(start))[0], at(start, 20))
    aside = folder / "set-aside-3"  # it could not be read, but may be whole
    assert {file.relative_to(aside): file.read_bytes() for file in aside.rglob("*") if file.is_file()} == abandoned
    assert open_(folder)[0].steps() == [1, 2]
    for step in (4, 5):
        checkpoints.save(step, at(start, step), DATA)
    checkpoints.wait()
    assert checkpoints.steps() == [4, 5]


def test_another_model_is_an_error_with_both_sides(start, folder):
    params = {**start.params, "discriminator": {**start.params["discriminator"], "new": jnp.ones(3)}}
    params["generator"] = {
        "enter": {"kernel": jnp.ones((96, 49))},
        "exit": {"bias": start.params["generator"]["exit"]["bias"]},
    }
    checkpoints, _ = open_(folder)
    with pytest.raises(CheckpointError) as error:
        checkpoints.restore(like(start.replace(params=params)))
    text = str(error.value)
    assert "only in the checkpoint: params/generator/exit/kernel (48, 96)" in text
    assert "only in this run: params/discriminator/new (3,)" in text
    assert "params/generator/enter/kernel is ((96, 48), 'float32'), this run has ((96, 49), 'float32')" in text


def test_weights_alone_are_something_to_begin_with(start, tmp_path):
    checkpoints, _ = open_(tmp_path / "run" / "checkpoints", write=True)
    checkpoints.save(3, at(start, 3).replace(opt={}, extra={}), {})
    checkpoints.wait()
    with pytest.raises(CheckpointError, match=re.escape(f"""it has weights alone, as `magvid import` makes it; begin another run with them, in another --workdir, by --config.init='[{{"run": "{tmp_path}/run"}}]'""")):
        checkpoints.restore(like(start))


def test_a_step_under_another_number_is_not_used(start, folder):
    (folder / "3").rename(folder / "4")
    checkpoints, said = open_(folder)
    assert checkpoints.restore(like(start))[2] == 2
    assert said == [f"damaged checkpoint in {folder}, step 4: it is that of step 3 under another number: using step 2"]


def test_missing_empty_foreign_and_unwritable_folders_are_named(start, tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        Checkpoints(tmp_path / "none")
    checkpoints, _ = open_(tmp_path / "empty", write=True)
    with pytest.raises(CheckpointError, match="no good checkpoint in .*empty: it is empty"):
        checkpoints.restore(like(start))
    (tmp_path / "foreign" / "7" / "default").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="foreign: step 7: its description cannot be read"):
        open_(tmp_path / "foreign")[0].restore(like(start))
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write checkpoints to .*file"):
        Checkpoints(tmp_path / "file" / "c", write=True)


def test_a_failed_save_names_the_folder_and_leaves_the_state(start, tmp_path):
    checkpoints, _ = open_(tmp_path / "c", write=True)
    shutil.rmtree(tmp_path / "c")
    (tmp_path / "c").write_text("not a folder any more")
    train_state = at(start, 1)
    with pytest.raises(CheckpointError, match=f"could not be written to {tmp_path / 'c'}"):
        checkpoints.save(1, train_state, DATA)
        checkpoints.wait()
    same(train_state, at(start, 1))


@contextlib.contextmanager
def full_disk():
    """No file can be written that has more than a hundred bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_a_save_that_failed_in_the_background_leaves_nothing_and_loses_nothing(start, tmp_path, keep):
    """Whatever is kept: the older ones stay until a newer one is whole, the list is that of the disk, and the next save is as any."""
    checkpoints, said = open_(tmp_path / "c", keep=keep, write=True)
    on_disk = lambda: sorted(int(path.name) for path in (tmp_path / "c").iterdir())  # ValueError for a temporary folder
    for step in (1, 2):
        checkpoints.save(step, at(start, step), DATA)
        checkpoints.wait()
    before = [1, 2][-keep:]
    with full_disk(), pytest.raises(CheckpointError, match="the last checkpoint could not be written .*is the disk full or read-only"):
        checkpoints.save(3, at(start, 3), DATA)
        checkpoints.wait()
    assert on_disk() == checkpoints.steps() == before
    same(checkpoints.restore(like(start))[0], at(start, 2))
    with full_disk():
        checkpoints.save(4, at(start, 4), DATA)
        for thread in threading.enumerate():  # without asking what came of it
            if thread.name.startswith("save_finalize"):
                thread.join(60)
    checkpoints.save(5, at(start, 5), DATA)  # says that the one before failed
    checkpoints.wait()
    assert on_disk() == checkpoints.steps() == [*before, 5][-keep:]
    assert len(said) == 1 and "the last checkpoint could not be written" in said[0] and "Training goes on and tries again now" in said[0]
    same(checkpoints.restore(like(start))[0], at(start, 5))


def test_merge_is_strict_both_ways_and_prints_what_it_skips():
    init = {"a": {"w": np.zeros((2, 2), np.float32), "b": np.zeros(2, np.float32)}, "c": np.zeros(1)}
    loaded = {"a": {"w": np.ones((2, 2), np.float64)}, "c": np.ones(3), "d": np.ones(1)}
    with pytest.raises(UserError) as error:
        merge(loaded, init)
    assert all(t in str(error.value) for t in ("missing: a/b (2,)", "shape: c has (3,), needs (1,)", "unused: d (1,)"))
    said = []
    found = merge(loaded, init, ["^a/b$", "^[cd]$"], said.append)
    assert len(said) == 3 and found["a"]["b"] is init["a"]["b"] and found["c"] is init["c"] and set(found) == {"a", "c"}
    assert found["a"]["w"].dtype == np.float32 and found["a"]["w"].all()


def test_small_arrays_are_not_cut_between_devices(start, tmp_path, caplog):
    """The cut would compile a program for each shape."""
    mesh = sharding.make_mesh({"data": -1})
    places = sharding.state_shardings(start, ((".*", None),), mesh)
    whole = jax.device_put(start.replace(frozen={}), places.replace(frozen={}))
    assert len(jax.tree.leaves(whole.params)[0].sharding.device_set) == 8
    checkpoints = Checkpoints(tmp_path / "checkpoints", write=True)
    with jax.log_compiles():
        checkpoints.save(1, whole, DATA)
        checkpoints.wait()
    checkpoints.close()
    assert "jit(slice)" not in caplog.text and "jit(_slice)" not in caplog.text
