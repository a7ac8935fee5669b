"""magvid.video: ranges, files written and read back, grids, resizing."""

import sys
import time
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from make_videos import damaged, encode, numbered, numbers
from PIL import Image

from magvid import video
from magvid.types import UserError


def moving(frames=6, height=32, width=48):
    """Smooth colours with a moving square: nothing that half-resolution colour cannot hold."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([4 * x, 5 * y, 3 * (x + y)], axis=-1).astype(np.uint8)
    clip = np.repeat(image[None], frames, axis=0)
    for k in range(frames):
        clip[k, 8:16, 2 * k : 2 * k + 12] = 240
    return clip


def psnr(a, b):
    return -10 * np.log10(np.mean((a / 255.0 - b / 255.0) ** 2) + 1e-12)


def test_all_256_values_survive_the_float_range():
    levels = np.arange(256, dtype=np.uint8)
    floats = video.to_float(levels)
    assert floats.dtype == np.float32 and floats[0] == 0 and floats[-1] == 1
    np.testing.assert_array_equal(video.to_uint8(floats), levels)
    np.testing.assert_array_equal(video.to_uint8(np.array([-0.005, 0.5, 1.005])), [0, 128, 255])
    assert video.to_uint8(np.ones(2, ml_dtypes.bfloat16)).tolist() == [255, 255]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.0, 200.0], "from 0 to 200: divide 0-255 floats by 255"),
        ([-1.0, 1.0], r"from -1 to 1: rescale it to \[0, 1\]"),
        ([0.0, np.nan], "from nan to nan"),
    ],
)
def test_values_outside_the_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        video.to_uint8(np.array(values))


def test_wrong_dtypes_are_refused():
    with pytest.raises(ValueError, match="got float32"):
        video.to_float(np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="got uint8"):
        video.to_uint8(np.zeros(2, np.uint8))


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
@pytest.mark.parametrize("size", [(32, 48), (33, 47)])
def test_write_then_read(tmp_path, suffix, size):
    clip = moving(6, *size)
    video.write_video(tmp_path / f"clip{suffix}", clip, fps=10)
    back, fps = video.read_video(tmp_path / f"clip{suffix}")
    even = size if suffix == ".gif" else (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert back.shape == (6, *even, 3) and back.dtype == np.uint8
    assert fps == pytest.approx(10)
    assert psnr(back[:, : size[0], : size[1]], clip) > 27
    assert [p.name for p in tmp_path.iterdir()] == [f"clip{suffix}"]


def test_gif_loops_and_keeps_still_frames(tmp_path):
    video.write_video(tmp_path / "a.gif", np.repeat(moving(1), 5, axis=0), fps=8)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.info["loop"] == 0 and image.n_frames == 5
    assert len(video.read_video(tmp_path / "a.gif")[0]) == 5


def test_frame_rate_conversion(tmp_path):
    for name in ("a.mp4", "a.webm", "a.gif"):
        video.write_video(tmp_path / name, numbered(8), fps=8)
        for fps, expected in ((4, [0, 2, 4, 6]), (16, [k // 2 for k in range(16)]), (8, list(range(8)))):
            clip, rate = video.read_video(tmp_path / name, fps=fps)
            assert (numbers(clip), rate) == (expected, fps), name


def test_start_and_frames(tmp_path):
    encode(tmp_path / "a.mp4", numbered(10), rate=10)
    assert numbers(video.read_video(tmp_path / "a.mp4", start=0.3, frames=4)[0]) == [3, 4, 5, 6]
    assert numbers(video.read_video(tmp_path / "a.mp4", start=0.38, frames=1)[0]) == [3]
    assert video.read_video(tmp_path / "a.mp4", frames=1)[0].shape[0] == 1 and numbers(video.read_video(tmp_path / "a.mp4", start=0.9, frames=1)[0]) == [9]
    assert numbers(video.read_video(tmp_path / "a.mp4", fps=5, start=0.3, frames=3)[0]) == [3, 5, 7]
    with pytest.raises(UserError, match="lasts 1.00 s, which is before start=2 s"):
        video.read_video(tmp_path / "a.mp4", start=2)


def test_variable_frame_rate_shows_the_frame_of_the_moment(tmp_path):
    encode(tmp_path / "a.mkv", numbered(5), rate=100, times=[0, 10, 20, 80, 90])
    assert numbers(video.read_video(tmp_path / "a.mkv", fps=10)[0]) == [0, 1, 2, 2, 2, 2, 2, 2, 3, 4]
    assert numbers(video.read_video(tmp_path / "a.mkv")[0]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("rotation", "turns"), [(90, 1), (-90, 3), (180, 2)])
def test_rotation_metadata_turns_the_picture_upright(tmp_path, rotation, turns):
    clip = moving(3)
    encode(tmp_path / "a.mp4", clip, rotation=rotation)
    assert psnr(video.read_video(tmp_path / "a.mp4")[0], np.rot90(clip, turns, axes=(1, 2))) > 27


def test_non_square_pixels_are_made_square(tmp_path):
    encode(tmp_path / "a.mp4", moving(2), aspect=Fraction(2))
    assert video.read_video(tmp_path / "a.mp4")[0].shape == (2, 32, 96, 3)


def test_transparency_is_laid_over_white(tmp_path):
    image = np.zeros((16, 16, 4), np.uint8)
    image[:, :8] = (200, 0, 0, 255)
    frames = [Image.fromarray(image), Image.fromarray(image[:, ::-1])]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100, disposal=2)
    first = video.read_video(tmp_path / "a.gif")[0][0]
    assert first[5, 3].tolist() == [200, 0, 0] and first[5, 12].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("zero", "cannot be read as a video"),
        ("text", "cannot be read as a video"),
        ("truncated", "cannot be read as a video|is corrupt"),
        ("sound", "has no video stream, only sound"),
    ],
)
def test_files_that_are_no_videos(tmp_path, kind, message):
    path = damaged(tmp_path / "bad.mp4", kind)
    with pytest.raises(UserError, match=rf"bad\.mp4 ({message})"):
        video.read_video(path)


def test_missing_file_and_missing_package(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="nowhere.mp4 cannot be read as a video: No such file"):
        video.read_video(tmp_path / "nowhere.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match="pip install av"):
        video.read_video(tmp_path / "nowhere.mp4")


def test_decoding_from_the_middle_equals_decoding_all(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    for name in ("a.mp4", "a.mkv"):
        path = encode(tmp_path / name, noise, gop=12)
        whole = {frame.pts: frame.rgb() for frame in video.decode(path)}
        start = sorted(whole)[40]
        tail = [frame for frame in video.decode(path, start=start)]
        assert 20 <= len(tail) <= 20 + 12 and tail[0].pts <= start
        assert all(np.array_equal(whole[frame.pts], frame.rgb()) for frame in tail)


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "new folder" / "a.mp4"
    video.write_video(path, moving(2))
    before = path.read_bytes()

    def breaks(partial, *rest):
        partial.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(video, "_encode", breaks)
    with pytest.raises(OSError, match="disk full"):
        video.write_video(path, moving(3))
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["a.mp4"]


def test_writing_refuses_what_it_cannot_write(tmp_path):
    with pytest.raises(ValueError, match=r"'a.xyz': name it \*.mp4 or \*.webm or \*.gif"):
        video.write_video(tmp_path / "a.xyz", moving(2))
    with pytest.raises(ValueError, match="fps must be positive"):
        video.write_video(tmp_path / "a.mp4", moving(2), fps=0)
    for wrong in (moving(2)[0], moving(2) / 255.0, moving(2)[:0]):
        with pytest.raises(ValueError, match="non-empty uint8 video"):
            video.write_video(tmp_path / "a.mp4", wrong)


def test_a_png_is_a_video_of_one_frame(tmp_path):
    image = moving(1, 5, 7)
    video.write_video(tmp_path / "a.png", image)
    np.testing.assert_array_equal(video.read_video(tmp_path / "a.png")[0], image)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(ValueError, match="a.png would hold one frame of 2"):
        video.write_video(tmp_path / "a.png", moving(2))


def test_encode_mp4_can_start_before_it_is_loaded():
    data = video.encode_mp4(moving(4), fps=8)
    assert data[4:8] == b"ftyp" and 0 < data.index(b"moov") < data.index(b"mdat")


def test_grid_and_upscale():
    videos = np.stack([np.full((2, 1, 2, 3), level, np.uint8) for level in (10, 20, 30)])
    canvas = video.grid(videos, columns=2, gap=1)[0, :, :, 0]
    np.testing.assert_array_equal(canvas, [[10, 10, 255, 20, 20], [255] * 5, [30, 30, 255, 255, 255]])
    assert video.grid(videos, gap=0, scale=3).shape == (2, 6, 12, 3)
    np.testing.assert_array_equal(video.upscale(np.array([[[1], [2]]], np.uint8), 2)[..., 0], [[1, 1, 2, 2]] * 2)


def test_resize_crop():
    clip = moving(2, 20, 30)
    assert video.resize_crop(clip, 20, 30) is clip
    halves = np.zeros((1, 8, 16, 3), np.uint8)
    halves[:, :, 8:] = 255
    assert video.resize_crop(halves, 8, 8, x=0.0).max() == 0
    assert video.resize_crop(halves, 8, 8, x=1.0).min() == 255
    checker = np.broadcast_to((np.indices((64, 64)).sum(0) % 2 * 255)[None, ..., None], (1, 64, 64, 3)).astype(np.uint8)
    grey = video.resize_crop(checker, 8, 8)
    assert abs(grey[:, 1:-1, 1:-1].astype(int) - 127).max() <= 2  # without anti-aliasing it would be black or white
    assert video.resize_crop(clip, 40, 12).shape == (2, 40, 12, 3)


@pytest.mark.parametrize("overlap", [1, 3, 7])
@pytest.mark.parametrize("frames", [1, 7, 8, 9, 16, 64])
def test_windows_cover_the_frames_and_no_more_are_made(frames, overlap):
    """Laid out one by one."""
    end, count = 8, 1
    while end < frames:
        end, count = end + 8 - overlap, count + 1
    assert video.windows(frames, 8, overlap) == count


def test_windows_that_do_not_go_on_are_refused():
    for overlap in (0, 8, -1):
        with pytest.raises(ValueError, match=f"overlap={overlap}: windows of 8 frames can overlap by 1 to 7"):
            video.windows(64, 8, overlap)


def test_crossfade_has_the_official_weights():
    tail, window = np.full((2, 4, 2, 3, 3), 1.0, np.float32), np.full((2, 6, 2, 3, 3), 0.2, np.float32)
    joined = video.crossfade(tail, window)
    np.testing.assert_allclose(joined[0, :, 0, 0, 0], [1, 0.8, 0.6, 0.4, 0.2, 0.2], rtol=1e-6)
    assert joined.shape == window.shape and (joined == joined[:, :, :1, :1, :1]).all()
    np.testing.assert_array_equal(video.crossfade(tail[:, :1], window)[0, :, 0, 0, 0], np.float32([1, *[0.2] * 5]))
    np.testing.assert_array_equal(video.crossfade(tail[0], window[0]), joined[0])


def test_an_image_comes_back(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    video.write_image(tmp_path / "new" / "image.png", image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "image.png")), image)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["image.png"]


@pytest.mark.parametrize("fps", [3.0, 7.9, 8.0, 10.0, 24.0, 30.0])
@pytest.mark.parametrize("name, rate", [("a.mp4", 12.5), ("a.webm", 30.0), ("a.gif", 10.0)])
def test_a_stream_gives_the_frames_that_reading_gives(tmp_path, name, rate, fps):
    levels = np.linspace(0, 255, 13).astype(np.uint8)
    video.write_video(tmp_path / name, levels[:, None, None, None] * np.ones((1, 16, 16, 3), np.uint8), rate)
    whole, _ = video.read_video(tmp_path / name, fps)
    np.testing.assert_array_equal(np.stack(list(video.stream_video(tmp_path / name, fps))), whole)


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.gif"])
def test_equal_videos_are_equal_files_however_fast_their_frames_come(tmp_path, name):
    """Small noisy frames, for which x264 looks ahead in a thread of its own."""
    clip = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3)).astype(np.uint8)

    def slowly(pause):
        for i, frame in enumerate(clip):
            time.sleep(pause * (i % 3))
            yield frame

    files = set()
    for pause in (0, 0, 0.003, 0.01):
        video.write_video(tmp_path / name, slowly(pause))
        files.add((tmp_path / name).read_bytes())
    assert len(files) == 1


def test_frames_are_written_as_they_come(tmp_path):
    clip = np.random.default_rng(0).integers(0, 256, (5, 16, 22, 3)).astype(np.uint8)
    for name in ("a.mp4", "a.gif", "a.webm"):
        video.write_video(tmp_path / name, clip)
        whole, _ = video.read_video(tmp_path / name)
        video.write_video(tmp_path / name, iter(clip))
        np.testing.assert_array_equal(video.read_video(tmp_path / name)[0], whole)

    def breaks():
        yield clip[0]
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        video.write_video(tmp_path / "b.mp4", breaks())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gif", "a.mp4", "a.webm"]
