"""CLIP's own view of a picture, as its published image processor makes it; the numbers are Pillow's."""

import dataclasses

import numpy as np
from jaxtyping import UInt8

from magvid.data.stream import Record
from magvid.video import import_pillow


def shortest_side(video: UInt8[np.ndarray, "t h w 3"], size: int) -> UInt8[np.ndarray, "t size size 3"]:
    """Frames resized (bicubic, anti-aliased) so that the shorter side has `size` pixels, the longer one rounded down, and
    the middle of that. `magvid.models.clip.normalise(video / 255)` is what the tower reads.
    """
    h, w = video.shape[1:3]
    height, width = (int(size * n / min(h, w)) for n in (h, w))
    if (height, width) != (h, w):
        Image = import_pillow()
        resized = [Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC) for frame in video]
        video = np.stack([np.asarray(frame) for frame in resized])
    top, left = (height - size) // 2, (width - size) // 2
    return video[:, top : top + size, left : left + size]


@dataclasses.dataclass(frozen=True)
class ClipView:
    """Adds `clip_video`, uint8 (t size size 3): CLIP's view of every frame of `video`."""

    size: int = 224

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        return record | {"clip_video": shortest_side(record["video"], self.size)}
