"""The ten tasks of MAGVIT as a table (paper, section 3.3 and appendix; official `task_registry` for TASKS_OFFICIAL).

A task says which pixels are given, how the rest of the condition video is padded, and whether the class is given.
Regions are NumPy masks of a static shape (t h w), so that one compiled program serves all tasks: the task is an index
per example.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from magvid.build import resolve

Shape = tuple[int, int, int]  # (t, h, w) of pixels, or (t', h', w') of the latent grid
Mask = np.ndarray  # bool (t h w)


@dataclasses.dataclass(frozen=True)
class Task:
    """token: special slot of the task token, counted from the end of the vocabulary; region(shape) -> mask of the given
    pixels; pad(video, mask) -> condition video; class_cond: the class token is given; latent_mask(shape) overrides the
    any-pool of the region.
    """

    token: int
    region: Callable[[Shape], Mask]
    pad: Callable[[Float[Array, "t h w 3"], Mask], Float[Array, "t h w 3"]]
    class_cond: bool = False
    latent_mask: Callable[[Shape], Mask] | None = None


# --- regions: True where the pixel is given


def box(shape: Shape, t=slice(None), h=slice(None), w=slice(None)) -> Mask:
    mask = np.zeros(shape, bool)
    mask[t, h, w] = True
    return mask


def middle(n: int) -> slice:
    """The middle half n//4 .. 3n//4."""
    return slice(n // 4, 3 * n // 4)


def nothing(shape: Shape) -> Mask:
    return np.zeros(shape, bool)


@dataclasses.dataclass(frozen=True)
class FirstFrames:
    """The first `frames` frames."""

    frames: int = 1

    def __call__(self, shape: Shape) -> Mask:
        if not 0 < self.frames < shape[0]:
            raise ValueError(f"frame prediction from {self.frames} frames needs a clip of more frames, got {shape[0]}")
        return box(shape, t=slice(0, self.frames))


def first_and_last_frame(shape: Shape) -> Mask:
    return box(shape, t=[0, -1])


def middle_rows(shape: Shape) -> Mask:
    return box(shape, h=middle(shape[1]))


def middle_columns(shape: Shape) -> Mask:
    return box(shape, w=middle(shape[2]))


def centre(shape: Shape) -> Mask:
    return middle_rows(shape) & middle_columns(shape)


def moving_columns(shape: Shape) -> Mask:
    """Half of the columns, sliding from the left edge at the first frame to the right edge at the last (rounded half to
    even).
    """
    t, _, w = shape
    mask = np.zeros(shape, bool)
    for frame, start in enumerate(np.round(np.linspace(0, w // 2, t)).astype(int)):
        mask[frame, :, start : start + w // 2] = True
    return mask


def all_but_centre(shape: Shape) -> Mask:
    return ~centre(shape)


def all_but_moving_centre(shape: Shape) -> Mask:
    return ~(middle_rows(shape) & moving_columns(shape))


def top_left_quarter(shape: Shape) -> Mask:
    return box(shape, h=slice(0, shape[1] // 2), w=slice(0, shape[2] // 2))


def all_but_top_left_quarter(shape: Shape) -> Mask:
    return ~top_left_quarter(shape)


# --- pads: condition video from the given pixels


def edge(video: Float[Array, "t h w 3"], mask: Mask) -> Float[Array, "t h w 3"]:
    """Repeat the border of the given box in time, rows and columns."""
    for axis in range(3):
        given = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        video = jnp.take(video, np.clip(np.arange(mask.shape[axis]), given[0], given[-1]), axis=axis)
    return video


def zeros(video: Float[Array, "t h w 3"], mask: Mask) -> Float[Array, "t h w 3"]:
    return jnp.where(mask[..., None], video, 0.0)


def interpolate(video: Float[Array, "t h w 3"], mask: Mask) -> Float[Array, "t h w 3"]:
    """Linear between the first and the last frame."""
    ratio = jnp.asarray(np.linspace(0, 1, video.shape[0], dtype=np.float32))[:, None, None, None]
    between = video[:1] + (video[-1:] - video[:1]) * ratio
    return jnp.where(mask[..., None], video, between)


TASKS = {
    "CG": Task(3, nothing, zeros, class_cond=True),
    "FP": Task(4, FirstFrames(1), edge),
    "FI": Task(5, first_and_last_frame, interpolate),
    "OPC": Task(6, centre, edge),
    "IPC": Task(7, all_but_centre, zeros),
    "OPV": Task(8, middle_columns, edge),
    "OPH": Task(9, middle_rows, edge),
    "OPD": Task(10, moving_columns, zeros),
    "IPD": Task(11, all_but_moving_centre, zeros),
    "CFP": Task(12, FirstFrames(1), edge, class_cond=True),
}
"""magvid's own table: every task has a token of its own, never reused; the latent mask is the paper's any-pool."""

NAMES = {
    "FP": "frame prediction",
    "FI": "frame interpolation",
    "OPC": "central outpainting",
    "OPV": "vertical outpainting",
    "OPH": "horizontal outpainting",
    "OPD": "dynamic outpainting",
    "IPC": "central inpainting",
    "IPD": "dynamic inpainting",
    "CG": "class-conditional generation",
    "CFP": "class-conditional frame prediction",
}

TASKS_OFFICIAL = {
    "CG": TASKS["CG"],
    "FP": TASKS["FP"],
    "FI": TASKS["FI"],
    "OPC": Task(6, centre, edge),
    "OPV": Task(6, middle_columns, edge),
    "OPH": Task(6, middle_rows, edge),
    "OPD": Task(6, moving_columns, zeros, latent_mask=moving_columns),
    "IPC": Task(6, all_but_centre, zeros),
    "IPD": Task(6, all_but_moving_centre, zeros, latent_mask=all_but_moving_centre),
    "CFP": Task(4, FirstFrames(1), edge, class_cond=True),
    "OPQ": Task(6, top_left_quarter, edge),
    "IPQ": Task(6, all_but_top_left_quarter, zeros),
}
"""The release's table: shared tokens (inpainting has outpainting's, as released), and the dynamic tasks round their
latent trajectory on their own grid. For golden files and converted checkpoints; choose a row by the name
"official:OPD"."""


def find_task(name: str | Task) -> Task:
    """A task by name ("FP"; "FP5" and "CFP5" give 5 frames; "official:OPD" the release's row), by path
    ("mylab.grid:TASK"), or itself.
    """
    if isinstance(name, Task):
        return name
    table, row = (TASKS_OFFICIAL, name.removeprefix("official:")) if name.startswith("official:") else (TASKS, name)
    if row in table:
        return table[row]
    if match := re.fullmatch(r"(C?FP)([1-9]\d*)", row):
        return dataclasses.replace(table[match[1]], region=FirstFrames(int(match[2])))
    if ":" in row:
        found = resolve(row)
        if not isinstance(found, Task):
            raise ValueError(f'"{row}" is a {type(found).__name__}, not a magvid.masked.tasks.Task')
        return found
    raise ValueError(
        f'there is no task "{name}"; choose of {", ".join(TASKS)}, FP<frames>, CFP<frames>, official:<name> or a path '
        '"module:TASK"'
    )


def any_pool(mask: Mask, latent: Shape) -> Mask:
    """(t h w) -> (t' h' w'): True where a latent cell sees any given pixel, i.e. is not "only padded pixels" (paper,
    eq. 3).

    Each axis shrinks by the smallest power of two that gives ceil(n / factor) cells, as the encoder's downsampling
    does.
    """
    for axis, size in enumerate(cell_size(mask.shape, latent)):
        mask = np.logical_or.reduceat(mask, np.arange(0, mask.shape[axis], size), axis=axis)
    return mask


def cell_size(shape: Shape, latent: Shape) -> Shape:
    """Pixels (t h w) of a latent cell: each the smallest power of two that shrinks the pixels to the cells, rounded up."""
    sizes = []
    for axis, n, cells in zip("thw", shape, latent, strict=True):
        size = 1
        while -(-n // size) > cells:
            size *= 2
        if -(-n // size) != cells:
            raise ValueError(f"no power of two shrinks {n} pixels to {cells} latent cells along axis {axis}")
        sizes.append(size)
    return tuple(sizes)


def pixel_masks(tasks: Sequence[Task], shape: Shape) -> Bool[np.ndarray, "tasks t h w"]:
    return np.stack([task.region(shape) for task in tasks])


def latent_masks(tasks: Sequence[Task], shape: Shape, latent: Shape) -> Bool[np.ndarray, "tasks th hh wh"]:
    """Where the latent grid holds condition tokens, for each task."""
    return np.stack(
        [task.latent_mask(latent) if task.latent_mask else any_pool(task.region(shape), latent) for task in tasks]
    )


def condition_videos(
    tasks: Sequence[Task], video: Float[Array, "b t h w 3"], index: Int[Array, "b"]
) -> Float[Array, "b t h w 3"]:
    """The padded condition video of each example's task."""
    masks = pixel_masks(tasks, video.shape[1:4])
    pads = [lambda clip, pad=task.pad, mask=mask: pad(clip, mask) for task, mask in zip(tasks, masks)]
    return jax.vmap(lambda clip, i: lax.switch(i, pads, clip))(video, index)
