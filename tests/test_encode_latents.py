"""Training on cached latents is training on the videos, up to float16: the same stream, noise and loss."""

import functools
import json

import chex
import jax
import numpy as np
import pytest
import test_encode
import tiny_config
import tiny_runs

from magvid import encode, job
from magvid.__main__ import main
from magvid.data.latents import LatentRecord
from magvid.train import train
from magvid.types import UserError

ONE = jax.devices()[:1]
CLIP, LATENT = (5, 16, 24), (5, 8, 12, 2)


def sprites(split="train"):
    keys = ("video", "label", "caption")
    return dict(target="magvid.data.sprites:Sprites", world="small", split=split, keys=keys, frames=5, height=16, width=24)


@functools.cache
def vae_run():
    config = dict(steps=1, batch=2, objective=dict(target="magvid.objectives.autoencoder:Autoencoder", vae=dict(target="tiny_diffusion:VAE")))
    config |= dict(data=dict(train=dict(source=sprites())), optim=dict(vae=tiny_config.get_config()["optim"]["tokenizer"]))
    train(config, tiny_runs.folder() / "vae", devices=ONE, trust=True)
    return tiny_runs.folder() / "vae"


def config(cache=None, shown=True, views=2):
    """The first frame is told (`shown`), or nothing."""
    vae = dict(run=str(vae_run()))
    image = dict(target="magvid.models.conditioners:ImageLatent", vae=vae)
    objective = dict(target="magvid.objectives.denoise:Denoise", network=dict(target="tiny_diffusion:Network"), vae=vae)
    objective |= dict(conditioners=[image] if shown else [], drop=[[["image"], 0.3]] if shown else [])
    words = dict(target="magvid.data.text:WordTokenizer", words=["left", "moves"], length=20, key="caption", unknown=True)
    source = dict(target="magvid.data.views:Views", source=sprites(), views=views, clips=6)
    data = dict(train=dict(source=source, transforms=[words], cache=cache))
    data["eval"] = dict(source=sprites("validation"), transforms=[words], limit=8)
    optim = dict(network=tiny_config.get_config()["optim"]["tokenizer"])
    return dict(steps=2, batch=4, objective=objective, data=data, optim=optim)


def job_of(config, devices=ONE):
    return job.Job.from_config(job.check_config(config), devices, trust=True)


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    """12 rows in shards of 5."""
    out = tmp_path_factory.mktemp("latents")
    encode.encode(config(), out, rows=5, batch=4, devices=ONE, trust=True)
    return out


def test_the_folder_says_what_it_is(latents):
    record = LatentRecord.read(latents)
    assert tuple(record.clip) == CLIP and tuple(record.latent) == LATENT and record.rows == 12 and record.shards == 3
    assert record.frames == 1 and not record.features and record.entries == ["caption", "label"] and record.made["config"]["batch"] == 4
    assert record.vae["hash"] == tiny_runs.open_run(vae_run(), trust=True).read("vae")[1]


def update(one: job.Job):
    """(batch, parameters after a step on it, metrics)."""
    loader = one.loader()
    batch = next(loader)
    loader.close()
    prepared = one.prepare(batch)
    state, metrics, _ = one.step(prepared)(prepared.init(), job.sharding.global_batch(batch, one.mesh))
    return batch, jax.device_get(state.params), jax.device_get(metrics)


def test_a_step_on_latents_is_that_on_videos(latents):
    """Clips, views, texts, posterior's sample, noise, levels, dropped conditions, noise on the picture."""
    (a, params, metrics), (b, params2, metrics2) = (update(job_of(config(cache))) for cache in (None, str(latents)))
    assert set(b) == set(a) - {"video"} | {"latent_mean", "latent_logvar", "image"}
    np.testing.assert_array_equal(a["text_ids"], b["text_ids"])
    np.testing.assert_array_equal(a["video"][:, 0], b["image"])
    assert len(np.unique(b["latent_mean"])) > 50 and b["latent_mean"].dtype == np.float16
    chex.assert_trees_all_close(metrics, metrics2, rtol=1e-3)
    chex.assert_trees_all_close(params, params2, rtol=1e-3, atol=1e-4)


def test_eight_devices_write_what_one_writes(latents, tmp_path):
    encode.encode(config(), tmp_path, rows=5, batch=5, trust=True)
    read = lambda folder: {p.name: p.read_bytes() for p in sorted(folder.glob("*.arrayrecord"))}
    assert read(tmp_path) == read(latents)


def with_entities(cache=None):
    """Told an entity's pictures, larger than the clip, which are drawn with the view."""
    conf = config(cache, shown=False)
    pyramid = dict(target="magvid.adapters.magdiff:Pyramid")
    told = dict(target="magvid.adapters.magdiff:EntityLatents", vae=dict(run=str(vae_run())), pyramid=pyramid, levels=[1.5, 1.0])
    conf["objective"] |= dict(conditioners=[told], drop=[[["image"], 0.3]], trained=["network", "pyramid"])
    source = conf["data"]["train"]["source"]
    source["source"] |= dict(height=24, width=36, keys=("video", "label", "caption", "masks"))
    source["transforms"] = [dict(target="magvid.data.entities:Entities", references=[1, 3], editing=0.5, size=[16, 24])]
    conf["optim"]["pyramid"] = conf["optim"]["network"]
    del conf["data"]["eval"]
    return conf


def test_pictures_of_an_entity_are_kept_beside_latents(tmp_path):
    encode.encode(with_entities(), tmp_path, rows=5, batch=4, devices=ONE, trust=True)
    record = LatentRecord.read(tmp_path)
    assert tuple(record.clip) == CLIP and {"entities", "entity_valid"} <= set(record.entries)
    (b1, p1, m1), (b2, p2, m2) = update(job_of(with_entities())), update(job_of(with_entities(str(tmp_path))))
    assert b1["entities"].shape == (4, 5, 24, 36, 3) and 0 < b1["entity_valid"].sum() < 20
    for name in ("entities", "entity_valid", "index", "text_ids"):
        np.testing.assert_array_equal(b1[name], b2[name])
    assert "video" not in b2 and set(p1) == {"network", "pyramid"}
    chex.assert_trees_all_close((p1, m1), (p2, m2), rtol=2e-3, atol=2e-4)


# Features of frozen towers


@functools.cache
def towers_run():
    """A run that holds a text and an image tower."""
    objective = dict(target="magvid.objectives.contrastive:Contrastive", clip=dict(target="magvid.models.clip:CLIP", text=TEXT, vision=VISION))
    words = dict(target="magvid.data.text:WordTokenizer", words=["left", "moves"], length=20, key="caption", unknown=True)
    config = dict(steps=1, batch=2, objective=objective, data=dict(train=dict(source=sprites(), transforms=[words])))
    config |= dict(optim=dict(clip=tiny_config.get_config()["optim"]["tokenizer"]))
    train(config, tiny_runs.folder() / "towers", devices=ONE, trust=True)
    return tiny_runs.folder() / "towers"


SIZES = dict(width=8, depth=1, heads=2, mlp=16, projection=4)
TEXT = dict(target="magvid.models.clip:TextTower", vocab=6, length=20, **SIZES)
VISION = dict(target="magvid.models.clip:VisionTower", patch=8, image=[16, 24], **SIZES)


def told(cache=None, given=1, held_out=None, **train):
    """AID's condition: a text, states and `given` frames, as towers that are frozen say them, and the frames' latents."""
    conf = config(cache)
    tower = lambda part: dict(run=str(towers_run()), part=f"clip.{part}")
    seen = dict(vision=tower("vision"), prepare=dict(factory="magvid.models.clip:shortest_side", size=[16, 24]))
    dqformer = dict(target="magvid.adapters.dqformer:DQFormer", width=8, frames=5, queries=2, heads=2, states=2)
    conditioners = [
        dict(target="magvid.models.conditioners:ImageTokens", **seen),
        dict(target="magvid.models.conditioners:GivenLatents", vae=dict(run=str(vae_run())), frames=5, given=given),
        dict(target="magvid.adapters.dqformer:MCondition", text=tower("text"), dqformer=dqformer, given=given, repeat=2, **seen),
    ]
    drop = [[["text"], 0.2], [["image"], 0.2], [["text", "image"], 0.2]]
    conf["objective"] |= dict(conditioners=conditioners, drop=drop, trained=["network", "dqformer"])
    conf["optim"]["dqformer"] = conf["optim"]["network"]
    conf["data"]["train"] |= train
    conf["data"]["eval"]["cache"] = held_out
    return conf


def test_a_step_on_features_is_that_on_videos_without_the_towers(tmp_path, given=2):
    """Whatever is hidden of a clip; and only the frames that are given are kept."""
    for split in ("train", "eval"):
        encode.encode(told(given=given), tmp_path / split, split=split, features="all", devices=ONE, trust=True)
    record, features = LatentRecord.read(tmp_path / "train"), {"image_vision", "mcondition_text", "mcondition_vision"}
    assert record.frames == given and set(record.features) == features
    assert record.features["mcondition_text"]["shape"] == [2, 20, 8]  # the empty text and the instruction
    on_features = told(str(tmp_path / "train"), given, str(tmp_path / "eval"))
    jobs = [job_of(told(given=given)), job_of(on_features)]
    (a, params, metrics), (b, params2, metrics2) = map(update, jobs)
    assert set(b) == set(a) - {"video"} | {"latent_mean", "latent_logvar", "frames", *features}
    chex.assert_trees_all_close((params, metrics), (params2, metrics2), rtol=2e-3, atol=2e-4)
    frozen = lambda one, batch: set(one.prepare(batch).like.frozen)
    assert [frozen(one, batch) for one, batch in zip(jobs, (a, b), strict=True)] == [{"vae", "text", "vision"}, {"vae"}]
    spread = on_features | dict(mesh={"data": 2, "fsdp": 2}, sharding=[[".*", "fsdp"]])
    chex.assert_trees_all_close(update(job_of(spread, jax.devices()[:4]))[1:], (params2, metrics2), rtol=2e-3, atol=2e-4)
    with_towers = job_of(told(str(tmp_path / "train"), given))  # clips that are held out have no features
    assert frozen(with_towers, b) == {"vae", "text", "vision"}
    without = job_of(told(str(tmp_path / "train"), given, features=False)).loader()
    assert not features & set(next(without))


def test_the_command_line_trains_on_features(tmp_path, monkeypatch, capsys):
    """To the end: the run holds what is trained, and videos are made with the towers."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "told.py").write_text(CONFIG.replace(".config()", ".told()"))
    assert main(["encode", "--config=told.py", "--trust", "--out=kept", "--features=all"]) == 0
    assert "latents, first frames, image_vision, mcondition_text, mcondition_vision, caption, label" in capsys.readouterr().out
    command = ["train", "--config=told.py", "--workdir=run", "--trust", "--config.eval_every=2", "--config.batch=8"]
    assert main([*command, "--config.data.train.features=true"]) == 2
    assert "data.train.features is True, and there is no data.train.cache to take them from" in capsys.readouterr().err
    assert main(["encode", "--config=told.py", "--trust", "--out=held", "--features=all", "--split=eval"]) == 0
    caches = [f"--config.data.{split}.{field}" for split, folder in (("train", "kept"), ("eval", "held")) for field in (f"cache={folder}", "features=true")]
    assert main([*command, *caches]) == 0  # towers are there again for the evaluation's samples
    assert main(["sample", "--run=run", "--number=1", "--steps=1", "--format=gif", "--trust"]) == 0
    assert list((tmp_path / "run/samples").glob("*.gif"))


def test_of_pictures_the_latents_and_tokens(tmp_path):
    """As MagDiff reads them; some of the towers, or all."""
    conf = with_entities()
    tower = dict(run=str(towers_run()), part="clip.vision")
    resampler = dict(target="magvid.adapters.magdiff:Resampler", width=4, queries=2, depth=1, heads=1, head_dim=4, out=3)
    prepare = dict(factory="magvid.models.clip:shortest_side", size=[16, 24])
    conf["objective"]["conditioners"].append(dict(target="magvid.adapters.magdiff:EntityTokens", vision=tower, resampler=resampler, prepare=prepare))
    conf["objective"]["trained"].append("resampler")
    conf["optim"]["resampler"] = conf["optim"]["network"]
    kept = lambda towers: set(encode.encode(conf, tmp_path / towers, features=towers, devices=ONE, trust=True).features)
    assert kept("vae") == {"image_vae_0", "image_vae_1"} and kept("all") == {"image_vae_0", "image_vae_1", "image_vision"}
    with pytest.raises(UserError, match="--features=vae,text: text is no tower that is frozen and tells this model something; these are: vae, vision"):
        kept("vae,text")
    a, params, metrics = update(job_of(conf))
    conf["data"]["train"] |= dict(cache=str(tmp_path / "all"), features=True)
    b, params2, metrics2 = update(job_of(conf))
    assert set(b) - set(a) == {"latent_mean", "latent_logvar", "image_vae_0", "image_vae_1", "image_vision"}
    chex.assert_trees_all_close((params, metrics), (params2, metrics2), rtol=2e-3, atol=2e-4)


def test_features_of_other_texts_are_refused(tmp_path):
    encode.encode(told(), tmp_path, features="all", devices=ONE, trust=True)
    changed = told(str(tmp_path))
    changed["data"]["train"]["transforms"][0]["words"] = ["moves", "left"]
    with pytest.raises(UserError, match="mcondition_text in .* was made of other text_ids and null_ids than those at position"):
        next(job_of(changed).loader())


def test_features_that_cannot_be_kept(latents, tmp_path):
    keep = lambda conf: encode.encode(conf, tmp_path, features="all", devices=ONE, trust=True)
    with pytest.raises(UserError, match="no frozen towers tell this model what stays the same of a clip: leave out --features"):
        keep(config())
    drawn = told()
    drawn["data"]["train"]["transforms"] = [
        dict(target="magvid.data.text:Template", template="a sprite"),
        dict(target="magvid.data.text:OneOf", keys=["text", "caption"]),
        dict(told()["data"]["train"]["transforms"][0], key="text"),
    ]
    said = []
    record = encode.encode(drawn, tmp_path / "drawn", features="all", devices=ONE, trust=True, say=said.append)
    assert set(record.features) == {"image_vision"}
    assert said[:2] == [f"mcondition_{tower} is not kept: data.train.transforms draw text_ids anew each time" for tower in ("text", "vision")]
    drawn["data"]["train"]["cache"] = str(tmp_path / "drawn")
    assert {"image_vision", "text_ids"} <= set(next(job_of(drawn).loader()))
    with pytest.raises(UserError, match="features are kept beside latents, and this config keeps tokens: leave out --features"):
        keep(test_encode.config())
    with pytest.raises(UserError, match="--features=text keeps nothing here: image_vision is made by vision; mcondition_text is made by text and vision"):
        encode.encode(told(), tmp_path, features="text", devices=ONE, trust=True)
    with pytest.raises(UserError, match="--features=: nothing is no tower that is frozen"):
        encode.encode(told(), tmp_path, features="", devices=ONE, trust=True)
    silent = told()
    silent["data"]["train"]["transforms"] = []
    with pytest.raises(UserError, match="what frozen towers say of clips cannot be kept: .* give text_ids, null_ids beside"):
        keep(silent)
    assert [path.name for path in tmp_path.iterdir()] == ["drawn"]
    latent = LatentRecord.read(latents)
    with pytest.raises(UserError, match="entries are latents, first frames, caption, label there, latents, first frames, image_vision, mcondition"):
        encode.encode(told(), latents, rows=latent.rows_per_shard, features="all", devices=ONE, trust=True)


def test_without_pictures_none_are_kept(latents, tmp_path):
    record = encode.encode(config(shown=False), tmp_path, devices=ONE, trust=True)
    assert record.frames == 0
    job_of(config(str(latents), shown=False)).loader().close()  # more than is needed serves
    with pytest.raises(UserError, match="this model is shown 1 of a clip's frames, and 0 are there"):
        job_of(config(str(tmp_path))).loader()
    with pytest.raises(UserError, match="holds other latents: .*first frames.* Choose another --out"):
        encode.encode(config(), tmp_path, devices=ONE, trust=True)


def test_what_does_not_fit_is_named(latents):
    with pytest.raises(UserError, match="are not those of this run: data.views is 2 there, 3 here"):
        job_of(config(str(latents), views=3)).loader()
    trained = config()
    trained["objective"]["vae"] = trained["objective"]["conditioners"][0]["vae"] = dict(target="tiny_diffusion:VAE")
    trained["optim"]["vae"] = trained["optim"]["network"]
    with pytest.raises(UserError, match=r"latents can be kept where the vae is frozen, .* objective.vae = dict\(run="):
        encode.encode(trained, latents, devices=ONE, trust=True)


def test_a_transform_that_changes_the_video_belongs_to_the_views(tmp_path):
    other = config()
    other["data"]["train"]["transforms"].append(dict(target="magvid.data.pipeline:Augment", flip=True))
    with pytest.raises(UserError, match="Augment in data.train.transforms changes the video, .* move it into"):
        encode.encode(other, tmp_path, devices=ONE, trust=True)
    assert not list(tmp_path.iterdir())


CONFIG = """
import test_encode_latents
def get_config(arg=None):
    return test_encode_latents.config()
"""


def test_the_command_line_encodes_trains_and_samples(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "told.py").write_text(CONFIG)
    encodes = ["encode", "--config=told.py", "--trust"]
    for split, clips, views in (("train", 6, 2), ("eval", 8, 1)):
        assert main([*encodes, f"--out={split}", f"--split={split}"]) == 0
        out = capsys.readouterr().out
        assert f"{clips} clips x {views} views, about" in out and f"encoded: {clips * views} rows" in out
        assert "(entries: latents, first frames, caption, label)" in out
        assert f"--config.data.{split}.cache={split}" in out
    command = ["train", "--config=told.py", "--workdir=run", "--trust", "--config.eval_every=2", "--config.ema=0.9", "--config.batch=8"]
    assert main([*command, "--config.data.train.cache=train", "--config.data.eval.cache=eval"]) == 0
    assert json.loads((tmp_path / "run/data.json").read_text())["clip"]["width"] == 24
    assert main(["sample", "--run=run", "--number=1", "--steps=2", "--format=gif", "--trust"]) == 0
    assert list((tmp_path / "run/samples").glob("*.gif"))
