"""What a diffusion model is shown by `magvid sample`: prompts, pictures and videos, by a config without a run."""

import dataclasses

import numpy as np
import pytest

import tiny_pipeline
import tiny_runs
from magvid import conditions
from magvid.data.text import WordTokenizer
from magvid.runs import ClipFormat, open_run
from magvid.sample import Options, sample_run
from magvid.types import UserError
from magvid.video import read_video, write_image, write_video

RNG = np.random.default_rng(0)
ONE = dict(number=1, scale=1, format="gif")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return tiny_pipeline.recipe(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "cat.png"
    write_image(path, RNG.integers(0, 256, (20, 40, 3)).astype(np.uint8))
    return str(path)


def names(recipe, tmp_path, **options) -> list[str]:
    paths = sample_run(recipe, Options(out=str(tmp_path), **{**ONE, **options}), trust=True)
    return [path.name for path in paths]


def test_a_prompt_makes_videos_of_the_configs_size(recipe, tmp_path, capsys):
    found = names(recipe, tmp_path, prompt="A red disc", number=2)
    assert found[:2] == ["T2V_a-red-disc_00_seed0.gif", "T2V_a-red-disc_01_seed0.gif"]
    assert "I2V is left out: it needs a picture (--image or --video)" in capsys.readouterr().out
    videos = [read_video(tmp_path / name)[0] for name in found[:2]]
    assert videos[0].shape == tiny_pipeline.CLIP + (3,) and (videos[0] != videos[1]).any()
    other = read_video(tmp_path / names(recipe, tmp_path, prompt="A blue disc")[0])[0]
    assert (other != videos[0]).any()
    away = read_video(tmp_path / names(recipe, tmp_path, prompt="A red disc", negative="blue")[0])[0]
    assert (away != videos[0]).any()


def test_a_picture_with_and_without_a_prompt(recipe, picture, tmp_path, capsys):
    assert names(recipe, tmp_path, image=picture)[0] == "I2V_cat_00_seed0.gif"
    assert "cat.png: 40x20 pixels centre-cropped and resized to 24x16" in capsys.readouterr().out
    assert names(recipe, tmp_path, image=picture, prompt="red")[0] == "TI2V_cat_00_seed0_promptred.gif"
    assert names(recipe, tmp_path, image=picture, prompt="red", tasks=["I2V"])[0].startswith("I2V_cat")
    with pytest.raises(UserError, match="T2V is given no picture: leave out --image"):
        names(recipe, tmp_path, image=picture, tasks=["T2V"])


def test_an_empty_prompt_is_a_prompt(recipe, tmp_path):
    assert names(recipe, tmp_path, prompt="", size="16x24")[0] == "T2V_empty_00_seed0_size16x24.gif"


def test_a_picture_where_more_than_one_frame_is_needed(picture, tmp_path):
    one = Options(image=picture, out=str(tmp_path), **ONE)
    with pytest.raises(UserError, match="cat.png is one frame, this run needs 8: give a --video, or name a task that is given one"):
        sample_run(open_run(tiny_runs.masked_run()), one)
    found = sample_run(open_run(tiny_runs.masked_run()), dataclasses.replace(one, tasks=("FP",)))
    assert read_video(found[0])[0].shape == (8, 16, 16, 3)
    with pytest.raises(ValueError, match="a video of 1x16x16 cannot be cut into patches of 4x4x4"):
        sample_run(open_run(tiny_runs.tokenizer_run()), one)  # a tokenizer is shown the one frame, and not black ones


def test_lengths_and_sizes(recipe, picture, tmp_path):
    found = names(recipe, tmp_path, prompt="red", frames=5, size="16x32")[0]
    assert found == "T2V_red_00_seed0_size16x32_frames5.gif"
    assert read_video(tmp_path / found)[0].shape == (5, 16, 32, 3)  # one clip, longer
    found = names(recipe, tmp_path, image=picture, frames=7)[0]  # windows that begin with the last frame
    assert read_video(tmp_path / found)[0].shape == (7, 16, 24, 3)
    video = tmp_path / "dog.mp4"
    write_video(video, RNG.integers(0, 256, (6, 20, 40, 3)).astype(np.uint8))
    found = names(recipe, tmp_path, video=str(video), fps=5.0)
    assert found[0] == "I2V_dog_00_seed0_fps5.0.gif"
    grid = read_video(tmp_path / found[-1])[0]
    assert grid.shape[0] == 3 and grid.shape[2] > 3 * 24  # condition, generated, real


def test_what_cannot_be_done_is_said(recipe, picture, tmp_path):
    one_frame = dataclasses.replace(recipe, config=recipe.config | {"objective": recipe.config["objective"] | {"clip": [1, 16, 24]}})
    assert names(one_frame, tmp_path, prompt="red", format=None)[0].endswith(".png")
    with pytest.raises(UserError, match="none of the tasks"):
        names(one_frame, tmp_path, prompt="red", frames=2)
    with pytest.raises(ValueError, match="17x24 pixels: the autoencoder takes multiples of 2, such as 16x24"):
        names(recipe, tmp_path, prompt="red", size="17x24")
    with pytest.raises(UserError, match="more frames than one"):
        names(recipe, tmp_path, prompt="red", format="png")
    with pytest.raises(UserError, match="give --prompt, --image or --video"):
        names(recipe, tmp_path)
    with pytest.raises(ValueError, match='lacks "green"'):
        names(recipe, tmp_path, prompt="green")
    with pytest.raises(UserError, match="there is no picture nowhere.png"):
        names(recipe, tmp_path, image="nowhere.png")
    with pytest.raises(ValueError, match="temperature: of masked transformers"):
        names(recipe, tmp_path, prompt="red", temperature=1.0)
    with pytest.raises(ValueError, match="--negative goes with a --prompt"):
        Options(negative="red")
    with pytest.raises(UserError, match="--label=3"):
        names(recipe, tmp_path, prompt="red", label="3")


def test_rows():
    shown = conditions.nothing(ClipFormat(3, 4, 6, fps=5.0), 2, 2, "red")
    assert shown.names == ["red_02", "red_03"] and shown.fps == 5 and shown.rows["video"].shape == (2, 3, 4, 6, 3)
    told = shown.told({"text_ids": np.array([[1, 2]])})
    np.testing.assert_array_equal(told.rows["text_ids"], [[1, 2], [1, 2]])
    np.testing.assert_array_equal(told.of(1)["task"], [1, 1])
    assert conditions.slug("A red, red disc!") == "a-red-red-disc" and conditions.slug("...") == "empty"
    long = [conditions.slug("red " * 20 + end) for end in ("disc", "star")]
    assert long[0] != long[1] and all(len(name) <= 49 for name in long)


def test_other_settings_of_a_config_have_a_folder_of_their_own(recipe):
    more = dataclasses.replace(recipe, config=recipe.config | {"objective": recipe.config["objective"] | {"clip": [2, 16, 24]}})
    steps = dataclasses.replace(recipe, config=recipe.config | {"steps": 7})
    assert recipe.samples.parent == more.samples.parent and recipe.samples == steps.samples != more.samples


def test_what_a_prompt_loses_is_said(capsys):
    class Short(WordTokenizer):
        def count(self, text):
            return len(text.split()) + 2

        def encode(self, text):
            return super().encode(" ".join(text.split()[: self.length - 2]))

    assert conditions.words(Short(("red",), 4), "red red")["text_ids"].shape == (1, 4) and not capsys.readouterr().out
    conditions.words(Short(("red",), 4), "red red red")
    assert "the model reads 4 of its 5 tokens; the rest is left out" in capsys.readouterr().out
