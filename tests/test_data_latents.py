"""magvid.data.latents: what is written is read, with all else that a record had; what does not serve is named."""

import dataclasses
import json
import pickle

import numpy as np
import pytest

from magvid.data.cache import Rows, Writer, is_complete
from magvid.data.latents import LatentCache, LatentRecord, checksum, pack_entries, unpack_entries
from magvid.data.pipeline import Loader
from magvid.data.stream import transformed
from magvid.data.text import WordTokenizer
from magvid.data.views import Views
from magvid.types import UserError

REST = dict(caption="cœur, \"left\"", label=np.int32(3), seen=np.array([[0.1, 2]], np.float32), many=["a", "b"], ok=True)


@dataclasses.dataclass(frozen=True)
class Told:
    """Clip i shows the grey i, or in training a shade above it; its caption says which clip it is."""

    def __len__(self):
        return 5

    def __getitem__(self, i):
        return self.read(i, None)

    def read(self, i, rng):
        shade = 0 if rng is None else int(rng.integers(1, 100))
        return dict(video=np.full((3, 4, 6, 3), i + shade, np.uint8), caption="ab"[i % 2], label=np.int32(i))


SOURCE = Views(Told(), 3)


def record(**changes) -> LatentRecord:
    """Five clips, three views, latents of 3x2x3x2; four shards of four rows, the last of three."""
    data = dict(source=dict(target="x:Y"), fingerprint=None, first="00ff", clips=5, views=3)
    vae = dict(run="runs/vae", weights="ema", hash="ab12", spec=dict(target="x:Z"))
    fields = dict(vae=vae, data=data, clip=(3, 4, 6), latent=(3, 2, 3, 2), frames=1, entries=["caption", "label"])
    return LatentRecord(**(fields | dict(rows_per_shard=4) | changes))


def latents_of(row):
    rng = np.random.default_rng(row)
    return [rng.normal(size=(3, 2, 3, 2)).astype(np.float16) for _ in range(2)]


def features_of(row):
    """Of `FEATURES`."""
    rng = np.random.default_rng(100 + row)
    return {name: rng.normal(size=kept["shape"]).astype(np.float16) for name, kept in FEATURES.items()}


WORDS = WordTokenizer(("a", "b"), 4, key="caption")
FEATURES = {
    "text_text": dict(shape=[2, 4, 5], inputs=["text_ids", "null_ids"], hash={"text": "11"}, spec={"null": []}),
    "image_vision": dict(shape=[1, 3], inputs=[], hash={"vision": "22"}, spec={"pooled": True}),
}


def write(folder, made=None):
    made = made or record()
    writer = Writer(folder, made, range(made.shards))
    for row in range(made.rows):
        view = SOURCE.view(*divmod(row, 3))
        shown = made.shown(view, transformed(view, (WORDS,)))
        writer.add([made.pack(*latents_of(row), shown["video"], shown["rest"], features_of(row), shown)])
    writer.close()
    made = dataclasses.replace(made, sizes=[(folder / made.shard_name(s)).stat().st_size for s in range(made.shards)])
    made.file(folder).write_text(json.dumps(made.to_json()))
    return made


def test_entries_come_back_as_they_were():
    found = unpack_entries(pack_entries(REST))
    assert list(found) == list(REST) and found["caption"] == REST["caption"] and found["many"] == ["a", "b"]
    for name in ("label", "seen", "ok"):
        assert np.asarray(found[name]).dtype == np.asarray(REST[name]).dtype
        np.testing.assert_array_equal(found[name], REST[name])
    with pytest.raises(UserError, match="what is a dict, which cannot be kept beside latents: leave it out"):
        pack_entries({"what": {}})


@pytest.mark.parametrize("shown,frames", [("image", 1), ("frames", 2), ("video", 3), ("", 0)])
def test_every_row_is_read_as_it_was_written(tmp_path, shown, frames):
    made = write(tmp_path, record(frames=frames))
    cache = pickle.loads(pickle.dumps(LatentCache(SOURCE, tmp_path, made)))
    assert len(cache) == 5 and cache.views == 3  # what the source says
    for row in range(15):
        clip, view = divmod(row, 3)
        found, expected = cache.view(clip, view), SOURCE.view(clip, view)
        for name, latent in zip(("latent_mean", "latent_logvar"), latents_of(row), strict=True):
            assert found[name].dtype == np.float16
            np.testing.assert_array_equal(found[name], latent)
        assert set(found) == {"latent_mean", "latent_logvar", "caption", "label"} | ({shown} if shown else set())
        assert (found["caption"], found["label"]) == (expected["caption"], expected["label"])
        if shown:
            np.testing.assert_array_equal(found[shown], expected["video"][0] if shown == "image" else expected["video"][:frames])


def test_features_come_to_the_texts_they_were_made_of(tmp_path):
    made = write(tmp_path, record(features=FEATURES))
    assert made.contents == "latents, first frames, image_vision, text_text, caption, label"
    cache = pickle.loads(pickle.dumps(LatentCache(SOURCE, tmp_path, made)))
    assert cache.record.towers == {"text", "vision"}
    for row in range(15):
        clip, view = divmod(row, 3)
        found = transformed(cache.view(clip, view), (WORDS, *cache.last))
        assert set(found) == {"latent_mean", "latent_logvar", "image", "caption", "label", "text_ids", "null_ids", "index", *FEATURES}
        for name, feature in features_of(row).items():
            assert found[name].dtype == np.float16
            np.testing.assert_array_equal(found[name], feature)
    other = WordTokenizer(("b", "a"), 4, key="caption")
    with pytest.raises(UserError, match="text_text in .* was made of other text_ids and null_ids than those at position 0 of the stream: .*features=False to do without"):
        transformed(cache.view(1, 0), (other, *cache.last))


def test_features_serve_where_they_are_those_of_the_run(tmp_path):
    made, words = write(tmp_path, record(features=FEATURES)), (WORDS,)
    keys = lambda wanted: set(transformed((cache := LatentCache(SOURCE, tmp_path, wanted)).view(0, 0), (*words, *cache.last)))
    assert keys(made) - keys(record()) == set(FEATURES)  # a run may do without
    assert keys(record(features=FEATURES | {"state_text": FEATURES["text_text"]})) == keys(made)  # or make those that are not there
    assert keys(record(features={"image_vision": FEATURES["image_vision"]})) - keys(record()) == {"image_vision"}
    changed = {"image_vision": FEATURES["image_vision"] | dict(hash={"vision": "33"})}
    with pytest.raises(UserError, match="image_vision.hash.vision is 22 there, 33 here"):
        LatentCache(SOURCE, tmp_path, record(features=changed))


def test_a_checksum_tells_all_that_features_are_made_of():
    texts = dict(a=np.arange(4), b=np.arange(3))
    assert len({checksum(texts, names) for names in (["a", "b"], ["b", "a"], ["a"], ["b"], [])}) == 5 and checksum(texts, []) == 0


def test_it_draws_as_the_source_does(tmp_path):
    """The clips, views and what transforms make of their captions, in the order of a stream of videos."""
    cache, words = LatentCache(SOURCE, tmp_path, write(tmp_path)), WordTokenizer(("a", "b"), 4, key="caption")
    plain, cached = Loader(SOURCE, 4, 1, transforms=(words,)), Loader(cache, 4, 1, transforms=(words, *cache.last))
    for _ in range(6):
        a, b = next(plain), next(cached)
        np.testing.assert_array_equal(a["video"][:, 0], b["image"])
        for key in ("label", "text_ids", "null_ids", "index"):
            np.testing.assert_array_equal(a[key], b[key])
        assert set(b) == set(a) - {"video"} | {"latent_mean", "latent_logvar", "image"}
    assert plain.get_state() == cached.get_state()


def test_a_shard_fits_into_memory():
    """SVD's clips are 3.8 MB each."""
    svd = record(clip=(14, 576, 1024), latent=(14, 72, 128, 4))
    assert svd.row_bytes == 14 * 72 * 128 * 4 * 2 * 2 + 576 * 1024 * 3 and svd.default_rows == 70
    assert record().default_rows == 4096


def test_the_rows_to_encode():
    row = Rows(SOURCE, record(), np.array([14, 4]))[1]
    expected = SOURCE.view(1, 1)
    np.testing.assert_array_equal(row["video"], expected["video"])
    assert unpack_entries(row["rest"]) == dict(caption="b", label=1) and "text_ids" not in row
    told = Rows(SOURCE, record(features=FEATURES), np.array([14, 4]), (WORDS,))[1]
    np.testing.assert_array_equal(told["text_ids"], WORDS.encode("b"))
    assert told["rest"] == row["rest"]
    random = (lambda record, rng: record | {"caption": "ab"[int(rng.integers(2))]}, WORDS)
    with pytest.raises(UserError, match=r"draw text_ids of clip 1 anew each time \(has it several texts"):
        Rows(SOURCE, record(features=FEATURES), np.array([4]), random)[0]


OTHER = {
    "vae.hash is ab12 there, cd34 here": dict(vae=record().vae | dict(hash="cd34")),
    "data.views is 3 there, 2 here": dict(data=record().data | dict(views=2)),
    r"latent is .* there, \[1, 2, 3, 2\] here": dict(latent=(1, 2, 3, 2)),
    "texture is not there": dict(entries=["label", "texture"]),
}


@pytest.mark.parametrize("message", OTHER)
def test_latents_of_something_else_are_refused(tmp_path, message):
    write(tmp_path)
    with pytest.raises(UserError, match=f"{message}.*run `magvid encode` again"):
        LatentCache(SOURCE, tmp_path, record(**OTHER[message]))


def test_a_part_of_what_is_there_serves(tmp_path):
    write(tmp_path)
    LatentCache(SOURCE, tmp_path, record(frames=0, entries=["label"]))
    with pytest.raises(UserError, match="this model is shown 3 of a clip's frames, and 1 are there"):
        LatentCache(SOURCE, tmp_path, record(frames=3))
    blind = tmp_path / "blind"
    blind.mkdir()
    write(blind, record(frames=0))
    with pytest.raises(UserError, match="this model is shown 1 of a clip's frames, and 0 are there"):
        LatentCache(SOURCE, blind, record())


def test_what_is_no_row_is_found(tmp_path):
    """Too short, cut off in its entries, or with flipped bits."""
    made = write(tmp_path)
    row = made.pack(*latents_of(0), np.zeros((3, 4, 6, 3), np.uint8), "{}")
    for bad in (row[:-10], row[:-1]):
        with pytest.raises(ValueError):
            made.unpack(bad)
    path = tmp_path / made.shard_name(1)
    assert is_complete(path, made, 4) and not is_complete(path, made, 3)
    content = np.fromfile(path, np.uint8)
    content[100:600:8] ^= 1
    content.tofile(path)
    assert not is_complete(path, made, 4)
    with pytest.raises(UserError, match=r"is damaged at row 4 \(.*: run `magvid encode` again"):
        LatentCache(SOURCE, tmp_path, made).view(1, 1)


@pytest.mark.parametrize("value", [1e6, np.nan])
def test_what_float16_cannot_hold_is_refused(value):
    full = lambda value: np.full((3, 2, 3, 2), value).astype(np.float16)
    video = np.zeros((3, 4, 6, 3), np.uint8)
    with np.errstate(over="ignore"), pytest.raises(UserError, match="a latent is too large for float16, or not a number"):
        record().pack(full(value), full(0), video, "{}")
    made = record(features={"image_vision": FEATURES["image_vision"]})
    with np.errstate(over="ignore"), pytest.raises(UserError, match="image_vision is too large for float16, or not a number"):
        made.pack(full(0), full(0), video, "{}", {"image_vision": full(value)})
