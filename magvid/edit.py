"""Videos of which a part is made anew, as a text says; what a mask leaves out stays (MagDiff)."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from magvid import conditions, runs
from magvid.compose import told_of
from magvid.data.entities import grown
from magvid.data.masks import decode_mask, resized, same_shape
from magvid.generator import Generator, clip_format
from magvid.metrics.frames import psnr
from magvid.types import UserError
from magvid.video import fit, frame_at, read_video, resize_crop, upscale, write_video


@dataclasses.dataclass(frozen=True)
class Options:
    """What is edited and how, as the flags of `magvid edit` say it. None stands for the run's own."""

    video: Sequence[str]  # one file
    mask: str  # of what is made anew: a picture for all frames, a folder with a picture for each, or a video
    prompt: str
    out: str
    negative: str | None = None
    start: float = 0.0  # seconds of the video that are skipped
    frames: int | None = None  # at most so many; None: all
    size: str | None = None  # "HxW"
    steps: int | None = None
    guidance: float | None = None  # by the text
    image_guidance: float | None = None  # by what stays
    grow: int | None = None  # pixels around the mask that are made anew as well, of the pictures that the run is told
    paste: bool = False  # the video's own pixels where nothing was to be made anew
    seed: int = 0
    scale: int = 1

    def __post_init__(self):
        if len(self.video) != 1:
            raise ValueError(f"one video is edited, and {len(self.video)} are named")
        if not self.mask:
            raise ValueError("--mask is missing: say what is made anew, by a picture, a folder of pictures or a video, white there")
        if not (self.prompt or "").strip():
            raise ValueError('--prompt is missing: say what shall be seen, such as --prompt="a red bus on a road"')
        ranges = dict(seed=(0, 2**32 - 1), frames=(1, 10**6), start=(0, 1e6), steps=(1, 1000), scale=(1, 64), grow=(0, 1000))
        conditions.check_ranges(self, **ranges, guidance=(0, 1000), image_guidance=(0, 1000))
        conditions.check_size(self.size)
        conditions.check_out(self.out, *self.video, self.mask)


def edit(run: runs.Run, options: Options, *, weights: str | None = None, trust: bool = False) -> list[pathlib.Path]:
    """Writes the video and returns where, in a list as the other commands do. UserError or ValueError, before anything is generated, for a run that is told no entity, a video
    or mask that cannot be read, a mask that covers nothing.
    """
    runs.check_writable(pathlib.Path(options.out).expanduser().parent, "--out")
    told = told_of(run)
    clip = conditions.sized(clip_format(run), options.size)
    path = conditions.existing(options.video[0], "video")
    shown, fps = read_video(path, None, options.frames, options.start)
    masks = masks_of(options.mask, len(shown), first=frame_at(path, options.start) if options.start else 0)
    (h, w), (mask_h, mask_w) = shown.shape[1:3], masks.shape[1:]
    if not same_shape((h, w), (mask_h, mask_w)):
        raise UserError(f"{options.mask} is {mask_w}x{mask_h} pixels and {options.video[0]} is {w}x{h}: a mask has the shape of its video")
    large, size = told.size(clip), (clip.height, clip.width)
    grow = told.entities.grow if options.grow is None else options.grow
    pictures, anew = fit(shown, *large, clip.keep_aspect), grown(resized(masks, lambda x: fit(x, *large, clip.keep_aspect)), grow)
    video, stays = fit(shown, *size, clip.keep_aspect), ~resized(anew, lambda x: resize_crop(x, *size))
    if stays.all():
        raise UserError(f"{options.mask} covers nothing of {options.video[0]} as it is cut to {clip.width}x{clip.height}: white is what is made anew")
    if not told.entities.editing:
        print(f"{run.path} was trained on no edits (editing=0): it was never told what stays, and may not heed it")
    print(f"{path.name}: {len(video)} frame{'s' * (len(video) > 1)} at {fps:g} per second, {conditions.fitted(shown, clip)}, of each {1 - stays.mean():.0%} is made anew")
    entities = np.where(anew[..., None], 0, pictures).astype(np.uint8)
    whole = {"video": video, "entities": entities, "entity_valid": np.ones(len(video), bool), "stays": stays}
    words = conditions.words(told.tokenizer, options.prompt, options.negative or "")
    row = conditions.blank(clip) | words | _window(whole, 0, clip.frames)
    model = Generator.open(run, decoding=conditions.decoding(options), batch=1, weights=weights, like=row, trust=trust)
    rows = row | {"index": np.zeros(1, np.int64), "task": np.zeros(1, np.int32)}
    (made,) = model.extend(rows, len(video), None, options.seed, window=lambda first: _window(whole, first, clip.frames))
    if options.paste:
        made = np.where(stays[..., None], video, made).astype(np.uint8)
    elif stays.any():
        near = psnr(*(pixels[stays][None, None] for pixels in (made, video))).item()
        print(f"what stays is {near:.1f} dB from the video, as the autoencoder gives it back; --paste keeps the video's own pixels")
    out = pathlib.Path(options.out).expanduser()
    write_video(out, upscale(made, options.scale), fps)
    return [out]


def _window(whole: Mapping[str, np.ndarray], first: int, frames: int) -> dict[str, np.ndarray]:
    """Rows of the frames from `first` on; the last one stands still where there are too few."""
    return {name: x[None, np.minimum(np.arange(first, first + frames), len(x) - 1)] for name, x in whole.items()}


def masks_of(place: str, frames: int, first: int = 0) -> Bool[np.ndarray, "t h w"]:
    """What is made anew in each of `frames` frames, of which the video's number `first` is the first one. In a folder, files are named by their frame's
    number, as tools/segment.py writes them; where a frame has none, nothing is made anew. UserError where there are no masks, or too few.
    """
    path = pathlib.Path(place).expanduser()
    if path.is_dir():
        return _numbered(path, frames, first)
    conditions.existing(place, "mask")
    if path.suffix.lower() in conditions.PICTURES:
        return np.repeat(decode_mask(path)[None], frames, axis=0)
    found, _ = read_video(path, None, first + frames + 1)
    if len(found) < first + frames:
        raise UserError(f"{place} has {len(found)} frames, and {first + frames} are needed: a mask for each frame of the video, or --frames")
    if len(found) > first + frames:
        print(f"{place} has more than {first + frames} frames: those beyond are not used")
    return found[first : first + frames].mean(axis=-1) > 127


def _numbered(folder: pathlib.Path, frames: int, first: int) -> Bool[np.ndarray, "t h w"]:
    files = {int(f.stem): f for f in folder.iterdir() if re.fullmatch(r"\d+", f.stem) and f.suffix.lower() in conditions.PICTURES}
    if files and max(files) >= first + frames:
        print(f"{folder} has masks up to number {max(files)}, of which those of the frames {first} to {first + frames - 1} are used")
    wanted = {i: decode_mask(files[first + i]) for i in range(frames) if first + i in files}
    if not wanted:
        some = ", ".join(f.name for f in sorted(folder.iterdir())[:3]) or "nothing"
        raise UserError(f"{folder} has no masks of frames {first} to {first + frames - 1}: they are named 00000.png, 00001.png, ...; it holds {some}")
    if len(shapes := {mask.shape for mask in wanted.values()}) > 1:
        raise UserError(f"the masks in {folder} have several sizes, such as {' and '.join(f'{w}x{h}' for h, w in sorted(shapes)[:2])}")
    nothing = np.zeros(shapes.pop(), bool)
    return np.stack([wanted.get(i, nothing) for i in range(frames)])
