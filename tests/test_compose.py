"""Videos of an entity, and parts of videos made anew, by MagDiff in its smallest form, from real files."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny_pipeline
import tiny_runs
from PIL import Image

from magvid import compose, edit, runs, sample
from magvid.train import train
from magvid.types import UserError
from magvid.video import read_video, write_video

CLIP = (4, 16, 24)
PARTS = tiny_pipeline.PARTS | dict(vision=dict(target="tiny_diffusion:Vision"), network=dict(target="tiny_diffusion:Network"))
RNG = np.random.default_rng(0)
LEFT = np.zeros((32, 48), bool)  # of a.gif
LEFT[:, :24] = True


def objective(parts):
    resampler = dict(target="magvid.adapters.magdiff:Resampler", width=4, queries=2, depth=1, heads=1, head_dim=4, out=3)
    pictures = dict(resampler=resampler, prepare=dict(factory="tiny_diffusion:prepare"))
    pyramid = dict(target="magvid.adapters.magdiff:Pyramid")
    return dict(
        network=dict(target="tiny_diffusion:Network"),
        conditioners=[
            dict(target="magvid.models.conditioners:TextTokens", text=parts["text"]),
            dict(target="magvid.adapters.magdiff:EntityTokens", vision=parts["vision"], **pictures),
            dict(target="magvid.adapters.magdiff:EntityLatents", vae=parts["vae"], pyramid=pyramid, levels=[1.5, 1.0]),
        ],
        trained=["network", "resampler", "pyramid"],
        drop=[[["text"], 0.2], [["image"], 0.2], [["text", "image"], 0.1]],
        tasks=dict(S2V=[]),
        sampling=dict(target="magvid.objectives.denoise:Sampling", steps=2, guidance=[[["text", "image"], 1.5], [["text"], 3.0]]),
        clip=list(CLIP),
        carried=2,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trained on sprites, every third batch of single frames."""
    folder = tmp_path_factory.mktemp("magdiff")
    made = tiny_pipeline.networks(folder, PARTS, objective)
    clip = dict(target="magvid.data.sprites:Sprites", world="small", frames=4, height=24, width=36, keys=["video", "label", "masks"])
    entities = dict(target="magvid.data.entities:Entities", references=[1, 2], editing=0.5, size=[16, 24])
    text = [entities, dict(target="magvid.data.text:Template", template="red disc"), tiny_pipeline.WORDS]
    one = dict(target="magvid.data.pipeline:Frames", indices=[0])
    adamw = dict(optimizer=dict(name="adamw", b1=0.9, b2=0.99), rules=[[".*", dict(peak=0.01)]])
    data = dict(train=dict(source=clip, transforms=text), eval=dict(source=dict(clip, split="test"), transforms=text, limit=4))
    data["pictures"] = dict(source=clip, transforms=[one, *text], batch=4, every=3)
    optim = {group: adamw for group in made["trained"]}
    train(dict(steps=3, batch=2, objective=made, data=data, optim=optim, save_every=0, log_every=1), folder / "run", devices=jax.devices()[:1], trust=True)
    return runs.open_run(folder / "run", trust=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A subject cut out, a picture with its mask, one of neither; a video of another size with masks of three kinds."""
    folder = tmp_path_factory.mktemp("files")
    picture = RNG.integers(1, 256, (30, 20, 3)).astype(np.uint8)
    mask = np.zeros((30, 20), np.uint8)
    mask[5:20, 4:14] = 255
    Image.fromarray(np.dstack([picture, mask])).save(folder / "cut.png")
    Image.fromarray(np.dstack([picture, np.where(mask, 140, 3).astype(np.uint8)])).save(folder / "soft.png")
    Image.fromarray(np.dstack([picture, 0 * mask])).save(folder / "empty.png")
    one = np.zeros((300, 200), np.uint8)
    one[0, 0] = 255
    Image.fromarray(np.dstack([np.ones((300, 200, 3), np.uint8), one])).save(folder / "speck.png")
    Image.fromarray(picture).save(folder / "whole.png")
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(mask[:10]).save(folder / "small.png")
    write_video(folder / "a.gif", RNG.integers(0, 256, (9, 32, 48, 3)).astype(np.uint8), 10)
    left = LEFT.astype(np.uint8) * 255
    Image.fromarray(left).save(folder / "left.png")
    Image.fromarray(0 * left).save(folder / "nothing.png")
    write_video(folder / "left.gif", np.repeat(left[None, ..., None], 9, 0).repeat(3, -1), 10)
    (folder / "masks").mkdir()
    for k in range(9):
        Image.fromarray(left).save(folder / "masks" / f"{k:05d}.png")
    (folder / "none").mkdir()
    (folder / "several").mkdir()
    Image.fromarray(left).save(folder / "several" / "00000.png")
    Image.fromarray(left[:16]).save(folder / "several" / "00001.png")
    Image.fromarray(np.where(left, 3, 0).astype(np.uint8)).save(folder / "labels.png")
    (folder / "davis").mkdir()  # palettes of numbers, 255 of which is neither
    numbers = np.where(left, 2, 0).astype(np.uint8)
    numbers[:4, 24:] = 255
    for k in range(9):
        annotation = Image.fromarray(numbers).convert("P")
        annotation.putdata(numbers.ravel().tolist())
        annotation.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, *[224] * 759])
        annotation.save(folder / "davis" / f"{k:05d}.png")
    (folder / "broken.mp4").write_bytes(b"no video")
    Image.new("1", (16000, 12000)).save(folder / "vast.png")
    return folder


def composed(run, files, out, *entities, **fields):
    entities = [",".join(str(files / part) for part in entity.split(",")) if "/" not in entity else entity for entity in entities]
    options = compose.Options(**(dict(entity=entities, prompt="a red disc", out=str(out)) | fields))
    return [read_video(path)[0] for path in compose.compose(run, options, trust=True)]


def edited(run, files, out, mask, video="a.gif", **fields):
    options = edit.Options(**(dict(video=[str(files / video)], mask=str(files / mask), prompt="a red disc", out=str(out)) | fields))
    (path,) = edit.edit(run, options, trust=True)
    return read_video(path)[0]


def test_a_video_of_an_entity(run, files, tmp_path, capsys):
    (one,) = composed(run, files, tmp_path / "1.gif", "cut.png")
    assert one.shape == (4, 16, 24, 3) and "no transparency" not in capsys.readouterr().out
    Image.open(files / "cut.png").save(tmp_path / "a, b.png")
    for same in ("whole.png,mask.png", "soft.png", str(tmp_path / "a, b.png")):
        np.testing.assert_array_equal(composed(run, files, tmp_path / "2.gif", same)[0], one)
    for other in (dict(prompt="blue disc"), dict(seed=1), dict(guidance=0.0), dict(image_guidance=9.0), dict(negative="blue")):
        assert np.any(composed(run, files, tmp_path / "3.gif", "cut.png", **other)[0] != one), other
    assert np.any(composed(run, files, tmp_path / "4.gif", "whole.png")[0] != one)
    said = capsys.readouterr().out
    assert "whole.png has no transparency: all of it is told" in said and "whole.png,MASK" in said
    several = composed(run, files, tmp_path / "n.gif", "cut.png", "whole.png", "cut.png", number=2, frames=9, scale=2)
    assert [v.shape for v in several] == [(9, 32, 48, 3)] * 2 and np.any(several[0] != several[1])
    assert "3 pictures of an entity: the run was trained on at most 2" in capsys.readouterr().out
    assert composed(run, files, tmp_path / "s.gif", "cut.png", size="24x32")[0].shape == (4, 24, 32, 3)


@pytest.mark.parametrize("mask", ["left.png", "left.gif", "masks", "davis"])
def test_a_part_of_a_video_is_made_anew_and_the_rest_stays(run, files, tmp_path, mask, capsys):
    """The rest is what the autoencoder makes of it, in windows after the first as well; or with `paste` the video itself."""
    made = edited(run, files, tmp_path / "1.webm", mask, paste=True)
    assert made.shape == (9, 16, 24, 3) and "9 frames at 10 per second, 48x32 pixels centre-cropped and resized to 24x16, of each 50% is made anew" in capsys.readouterr().out
    free, whole = (edit_frames(run, files, tmp_path, mask, paste) for paste in (False, True))
    assert "dB from the video, as the autoencoder gives it back; --paste keeps the video's own pixels" in capsys.readouterr().out
    shown, kept = whole["shown"], np.arange(24) >= 12
    np.testing.assert_array_equal(whole["made"][:, :, kept], shown[:, :, kept])
    latents = reconstructed(run, shown)
    assert np.abs(free["made"][:, :, kept].astype(int) - latents[:, :, kept]).max() <= 1
    assert np.abs(free["made"][:, :, :12].astype(int) - latents[:, :, :12]).max() > 20


def edit_frames(run, files, folder, mask, paste):
    """Frames as they are written, without a codec in between."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edit, "write_video", lambda path, video, fps: found.update(made=video))
        patch.setattr(edit, "fit", keep_last(found, edit.fit))
        edit.edit(run, edit.Options([str(files / "a.gif")], str(files / mask), "a red disc", str(folder / "x.gif"), paste=paste), trust=True)
    return found


def keep_last(found, fit):
    def fitted(video, *size):
        out = fit(video, *size)
        if out.ndim == 4:
            found["shown"] = out
        return out

    return fitted


def reconstructed(run, shown):
    """Through the run's autoencoder and back, frame by frame."""
    from magvid.build import build

    config, params = runs.load(run, trust=True)
    video = build(config["objective"]).reconstruct(params, {"video": shown[None]})
    return np.asarray(np.round(255 * video[0])).astype(int)


BAD = {
    ("compose", "empty.png"): r"shows no subject \(all of it is transparent\): give a picture that the subject fills",
    ("compose", "speck.png"): r"shows no subject \(1 pixels vanish in 36x24\)",
    ("compose", "whole.png,small.png"): "is 20x10 pixels and .* is 20x30: a mask has the size of its picture",
    ("compose", "lost.png"): "there is no picture",
    ("compose", "vast.png"): "vast.png cannot be read as an image: .* decompression bomb .*; make it smaller",
    ("compose", "a.gif,lost.png"): "there is no mask",
    ("edit", "nothing.png"): "covers nothing of",
    ("edit", "mask.png"): "is 20x30 pixels and .* is 48x32: a mask has the shape of its video",
    ("edit", "none"): "has no masks of frames 0 to 8: they are named 00000.png, 00001.png, ...; it holds nothing",
    ("edit", "lost.png"): "there is no mask",
    ("edit", "vast.png"): "vast.png cannot be read as a mask: .* decompression bomb .*; make it smaller",
    ("edit", "several"): r"the masks in .*several have several sizes, such as 48x16 and 48x32",
    ("edit", "labels.png"): "labels.png: nothing of the mask is lighter than half, the lightest is 3 of 255",
}


@pytest.mark.parametrize("command, file", BAD)
def test_bad_files_are_named(run, files, tmp_path, command, file):
    with pytest.raises(UserError, match=BAD[command, file]):
        (composed if command == "compose" else edited)(run, files, tmp_path / "x.gif", file)
    assert not (tmp_path / "x.gif").exists()


def test_what_cannot_be_edited_is_told(run, files, tmp_path, capsys):
    with pytest.raises(UserError, match="broken.mp4"):
        edited(run, files, tmp_path / "x.gif", "left.png", video="broken.mp4")
    with pytest.raises(UserError, match="is not told of an entity in pictures and words"):
        edited(runs.open_run(tiny_runs.tokenizer_run()), files, tmp_path / "x.gif", "left.png")
    config = json.loads(json.dumps(run.config))
    config["data"]["train"]["transforms"][0]["editing"] = 0.0
    edited(dataclasses.replace(run, config=config), files, tmp_path / "x.gif", "left.png")
    assert "was trained on no edits (editing=0)" in capsys.readouterr().out
    edited(run, files, tmp_path / "x.gif", "left.png")
    assert "was trained on no edits" not in capsys.readouterr().out


@pytest.mark.parametrize("entity", ["cut.png,", ",mask.png"])
def test_a_picture_and_its_mask_are_both_named(entity):
    with pytest.raises(ValueError, match=f"--entity={entity}: give PICTURE or PICTURE,MASK"):
        compose.Options(entity=[entity], prompt="a disc", out="x.gif")


def test_a_run_that_saw_whole_frames_says_so(run, files, tmp_path, capsys):
    config = json.loads(json.dumps(run.config))
    config["data"]["train"]["transforms"][0] |= dict(segmented=False)
    composed(dataclasses.replace(run, config=config), files, tmp_path / "x.gif", "cut.png")
    assert "was trained on whole frames (segmented=0)" in capsys.readouterr().out


def test_more_pictures_than_places(run, files, tmp_path):
    with pytest.raises(UserError, match="5 pictures of an entity are given, and .* has a place for 4"):
        composed(run, files, tmp_path / "x.gif", *["cut.png"] * 5)


def test_an_edit_may_begin_later_and_take_more_than_the_mask(run, files, tmp_path, capsys):
    """At 0.37 s of 10 frames per second number 3 is on the screen."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edit, "masks_of", lambda place, frames, first: seen.append((frames, first)) or np.repeat(LEFT[None], frames, 0))
        edited(run, files, tmp_path / "1.gif", "masks", start=0.37, grow=3)
    assert seen == [(6, 3)] and "of each 58% is made anew" in capsys.readouterr().out


def test_a_mask_video_that_is_too_short(run, files, tmp_path):
    write_video(tmp_path / "short.gif", np.full((3, 32, 48, 3), 255, np.uint8), 10)
    with pytest.raises(UserError, match="has 3 frames, and 9 are needed"):
        edited(run, files, tmp_path / "x.gif", str(tmp_path / "short.gif"))


def test_the_run_is_not_sampled_without_an_entity(run):
    with pytest.raises(UserError, match="is told of an entity in pictures: `magvid compose` and `magvid edit` show them to it"):
        sample.sample_run(run, sample.Options(prompt="a red disc"), trust=True)
