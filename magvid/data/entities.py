"""Pictures of an entity out of a clip and the masks of its subject: what MagDiff (Zhao et al., ECCV 2024, arXiv 2311.17338) is told.

To generate, the subject of one or several frames, on black; to edit, in every frame all that shall stay, with black where something new
shall be. One model learns both (section 3.2, "subject-driven alignment"). A user's own pictures become the same by `subject_of` and `placed`.
"""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, UInt8
from scipy.ndimage import binary_dilation

from magvid import video
from magvid.data.images import decode_image
from magvid.data.masks import decode_alpha, decode_mask, resized
from magvid.data.stream import Record
from magvid.types import UserError


@dataclasses.dataclass(frozen=True)
class Entities:
    """In place of `masks` bool (t h w) of the subject of `video`: `entities` uint8 (t h w 3), black where there is none, and `entity_valid`
    bool (t,). Where a record has `pictures` of an entity's own, uint8 (n h w 4) (see `VideoFolder`), these are told in place of the clip's subjects, and there need be
    no masks unless there is something to edit.

    references: how many, drawn uniformly, both ends included; of so many frames that have a subject (or pictures), or all there are, in random order,
    at the first places; with `first` the first of them, in their order (the released data have the first frame alone). editing: of this share of the
    clips everything but the subject is told in every frame instead, and what is within `grow` pixels of it is left out as well: a subject's edge has some of its colour. size: (h, w) to
    which `video` and `masks` are then made smaller: with (256, 256) from a source of 384x384 the pictures are 1.5 times as large as the clip.
    segmented=False: whole frames (the ablation without subject-driven alignment). centre: the subject is moved to the middle of its picture,
    so that it tells nothing of where it is; a whole frame with it, and its edge goes on. stays: adds `stays` bool (t h w),
    what is to be kept where everything else is edited, False elsewhere; for evaluation. still: of the clip its first frame alone is left, and
    one picture, of any of its frames unless `first`; for batches of single frames, in which a subject is then not where its picture has it.
    """

    references: tuple[int, int] = (1, 8)
    editing: float = 0.0
    size: tuple[int, int] | None = None
    segmented: bool = True
    centre: bool = False
    stays: bool = False
    grow: int = 0
    first: bool = False
    still: bool = False

    def __post_init__(self):
        low, high = self.references
        if not 1 <= low <= high:
            raise ValueError(f"references={tuple(self.references)}: from at least 1 to at least as many")
        if not 0 <= self.editing <= 1:
            raise ValueError(f"editing={self.editing}: a share in [0, 1]")
        if self.grow < 0:
            raise ValueError(f"grow={self.grow}: so many pixels, at least 0")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size={tuple(self.size)}: height and width in pixels, at least 1")

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        clip, masks, own = record["video"], record.get("masks"), record.get("pictures")
        if own is not None and not self.segmented:
            raise ValueError("segmented=False tells whole frames, and the record has pictures of an entity's own: leave one of them out")
        if masks is None and (self.editing or own is None):
            why = "" if own is None else f" to edit {self.editing:.0%} of the clips"
            raise ValueError(f"the record has no masks of a subject{why}; it has {', '.join(record)}: set `masks` of the source")
        if clip.dtype != np.uint8:
            raise ValueError(f"the record's video is {clip.dtype}: give pixels as uint8, 0 to 255")
        if masks is not None and (masks.dtype != bool or masks.shape != clip.shape[:3]):
            raise ValueError(f"the record's masks are {masks.dtype} {masks.shape} and its video is {clip.shape}: give bool, one for each pixel, {clip.shape[:3]}")
        edits = rng.random() < self.editing
        count = int(rng.integers(self.references[0], self.references[1] + 1))
        having = np.flatnonzero(masks.any(axis=(1, 2))) if own is None else np.arange(len(own))
        order = rng.permutation(having)  # drawn in any case: the clips are the same
        chosen = (having if self.first else order)[: min(count, len(clip))]  # own pictures may be more than a short clip has places
        if edits:
            masks = grown(masks, self.grow)
            pictures, valid = np.where(masks[..., None], 0, clip).astype(np.uint8), np.ones(len(clip), bool)
        else:
            frames, places = (clip[chosen], masks[chosen]) if own is None else (own[chosen, ..., :3], own[chosen, ..., 3] > 127)
            shown = cut_out(frames, places) if self.segmented else frames
            shown = centred(shown, places, "constant" if self.segmented else "edge") if self.centre else shown
            pictures, valid = placed(shown, len(clip))
        if self.still:
            clip, masks, pictures, valid = (x if x is None else x[:1] for x in (clip, masks, pictures, valid))
        told = {"entities": pictures, "entity_valid": valid}
        if self.size is not None:
            smaller = lambda images: video.resize_crop(images, *self.size)
            clip, masks = smaller(clip), None if masks is None else resized(masks, smaller)
        if self.stays:
            told["stays"] = ~masks if edits else np.zeros(clip.shape[:3], bool)
        return {key: value for key, value in record.items() if key not in ("masks", "pictures")} | told | {"video": clip}


def cut_out(frames: UInt8[np.ndarray, "n h w 3"], masks: Bool[np.ndarray, "n h w"]) -> UInt8[np.ndarray, "n h w 3"]:
    """The subject on black."""
    return np.where(masks[..., None], frames, 0).astype(np.uint8)


def subject_of(
    file: pathlib.Path, mask_file: pathlib.Path | None, size: tuple[int, int], say: Callable[[str], None]
) -> tuple[UInt8[np.ndarray, "1 h w 3"], Bool[np.ndarray, "1 h w"]]:
    """The subject of a picture on black, all of the picture within `size`; and where the subject is: what its transparency leaves, or the file of a mask. `say`s
    where neither tells the subject from what is around it. UserError for a file that cannot be read, or shows no subject.
    """
    picture = decode_image(file, blend=False)  # half transparent pixels have the subject's own colour
    mask = decode_mask(mask_file) if mask_file else decode_alpha(file)
    if mask is None:
        say(f"{file} has no transparency: all of it is told. To tell of a subject alone, cut it out, or give a mask")
        mask = np.ones(picture.shape[:2], bool)
    if mask.shape != picture.shape[:2]:
        sizes = [f"{shape[1]}x{shape[0]}" for shape in (picture.shape, mask.shape)]
        raise UserError(f"{mask_file} is {sizes[1]} pixels and {file} is {sizes[0]}: a mask has the size of its picture")
    within = lambda images: video.contain(images, *size)
    small = resized(mask[None], within)
    if not small.any():
        why = f"all of it is {'black' if mask_file else 'transparent'}" if not mask.any() else f"{mask.sum()} pixels vanish in {size[1]}x{size[0]}"
        raise UserError(f"{mask_file or file} shows no subject ({why}): give a picture that the subject fills")
    return cut_out(within(cut_out(picture[None], mask[None])), small), small  # cut before it is resized: no colour from around it comes in


def centred(frames: UInt8[np.ndarray, "n h w 3"], masks: Bool[np.ndarray, "n h w"], outside: str = "constant") -> UInt8[np.ndarray, "n h w 3"]:
    """Moved by whole pixels, so that the subject is in the middle, as far as it then lies within the picture. From `outside` comes black
    ("constant"), or the picture's edge goes on ("edge").
    """
    shown = frames.copy()
    for picture, mask in zip(shown, masks, strict=True):
        if mask.any():
            middles = [(places.min() + places.max()) / 2 for places in np.nonzero(mask)]
            at = [round(middle - (side - 1) / 2) for side, middle in zip(mask.shape, middles, strict=True)]
            wide = np.pad(picture, [*((abs(d), abs(d)) for d in at), (0, 0)], mode=outside)
            picture[:] = wide[tuple(slice(d + abs(d), d + abs(d) + side) for d, side in zip(at, mask.shape, strict=True))]
    return shown


def grown(masks: Bool[np.ndarray, "n h w"], by: int) -> Bool[np.ndarray, "n h w"]:
    """With all that is within `by` pixels, up, down and to the sides."""
    return binary_dilation(masks, np.ones((1, 2 * by + 1, 2 * by + 1))) if by else masks


def placed(pictures: UInt8[np.ndarray, "n h w 3"], frames: int) -> tuple[UInt8[np.ndarray, "t h w 3"], Bool[np.ndarray, "t"]]:
    """Pictures at the first of `frames` places, black at the others; and where there are any. ValueError for more than places."""
    if len(pictures) > frames:
        raise ValueError(f"{len(pictures)} pictures of an entity: a clip of {frames} frames has a place for {frames}")
    out = np.zeros((frames, *pictures.shape[1:]), np.uint8)
    out[: len(pictures)] = pictures
    return out, np.arange(frames) < len(pictures)

