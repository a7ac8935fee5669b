"""Pictures with words on them: a grid of videos, and the steps of parallel decoding. Pillow is imported where it is used."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from magvid.masked.tasks import cell_size
from magvid.types import DecodingSteps, UserError
from magvid.video import grid, to_uint8, upscale

INK, GREY = (25,) * 3, (110,) * 3

# Videos -------------------------------------------------------------------------------------------------------------

GRID_CELL = 96  # pixels: smaller videos are enlarged to at least this height


def labelled_grid(
    rows: Sequence[Sequence[UInt8[np.ndarray, "t h w 3"]]], columns: Sequence[str], labels: Sequence[str]
) -> UInt8[np.ndarray, "t H W 3"]:
    """Videos in rows and columns on white, with names of the columns above and of the rows at the left."""
    flat = np.stack([video for row in rows for video in row])
    h = flat.shape[2]
    scale = max(1, -(-GRID_CELL // h))
    body = grid(flat, columns=len(columns), gap=4, scale=scale)
    cell_h, cell_w = h * scale + 4, flat.shape[3] * scale + 4
    left = max(_text(label).shape[1] for label in labels) + 8
    canvas = np.full((len(body), body.shape[1] + 20, body.shape[2] + left, 3), 255, np.uint8)
    canvas[:, 20:, left:] = body
    for i, name in enumerate(columns):
        _paste(canvas, _text(name), 4, left + i * cell_w)
    for i, name in enumerate(labels):
        _paste(canvas, _text(name), 20 + i * cell_h + cell_h // 2 - 8, 4)
    return canvas


# Decoding steps -----------------------------------------------------------------------------------------------------

STEPS = 12  # most steps that are shown, the first and the last among them
FRAMES = 4  # most frames of the clip, one of a latent frame
FRAME = 96  # pixels: smaller frames are enlarged to at least this height
PAPER, HATCH, MARK = (232,) * 3, (165,) * 3, (240, 130, 20)
PANELS = ("The model sees", "It samples", "It keeps")
GAP, ROW_GAP, MARGIN, LABEL, HEADING, LEGEND = 3, 8, 20, 118, 76, 40  # pixels


def steps_picture(steps: DecodingSteps, title: str) -> UInt8[np.ndarray, "H W 3"]:
    """The decoding steps of one clip (numpy arrays without the batch axis), a row for each.

    Left what the model sees, where [MASK] is hatched and condition tokens are framed; in the middle what it samples;
    right what it keeps of that, where the tokens that it hides again are hatched. Of a latent frame its middle frame is
    shown.
    """
    _, t, h, w, _ = steps.seen.shape
    cell = cell_size((t, h, w), steps.masked.shape[1:])
    scale = max(1, -(-FRAME // h))
    shown = _even(len(steps.seen), STEPS)
    nothing = np.zeros_like(steps.masked)
    sources = [
        (steps.seen, steps.masked, steps.condition),
        (steps.sampled, nothing, nothing),
        (steps.sampled, steps.hidden, nothing),
    ]
    latent_frames = _even(steps.masked.shape[1], FRAMES)
    moments = [min(j * cell[0] + cell[0] // 2, t - 1) for j in latent_frames]
    rows = []
    for k in shown:
        panels = []
        for video, hatched, framed in sources:
            images = [upscale(to_uint8(video[k, moment]), scale) for moment in moments]
            marks = [(hatched[k, j], framed[k, j], (cell[1] * scale, cell[2] * scale)) for j in latent_frames]
            frames = [_marked(image, *mark) for image, mark in zip(images, marks, strict=True)]
            panels.append(_beside(frames, GAP))
        rows.append(_beside(panels, MARGIN))
    height, width = rows[0].shape[:2]
    canvas = np.full((HEADING + len(rows) * (height + ROW_GAP) + LEGEND, LABEL + width + 2 * MARGIN, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        top = HEADING + i * (height + ROW_GAP)
        canvas[top : top + height, MARGIN + LABEL : MARGIN + LABEL + width] = row

    texts = [(MARGIN, 12, title, 15, INK)]
    pitch, panel = w * scale + GAP, len(moments) * (w * scale + GAP) - GAP + MARGIN
    for i, name in enumerate(PANELS):
        left = MARGIN + LABEL + i * panel
        texts.append((left, 36, name, 13, INK))
        texts += [(left + j * pitch, 56, f"frame {m + 1}"[6 * (j > 0) :], 11, GREY) for j, m in enumerate(moments)]
    for i, k in enumerate(shown):
        middle = HEADING + i * (height + ROW_GAP) + height // 2
        texts.append((MARGIN, middle - 17, f"step {k + 1} of {len(steps.seen)}", 13, INK))
        texts.append((MARGIN, middle + 1, f"{steps.unknown[k].sum()} of {steps.unknown[k].size} masked", 12, GREY))
    return _write(canvas, texts, bool(steps.condition.any()))


def _write(canvas: np.ndarray, texts: Sequence[tuple], condition: bool) -> UInt8[np.ndarray, "H W 3"]:
    """The canvas with texts (x, y, text, size, colour), and below what the marks mean."""
    Image, ImageDraw, ImageFont = _pillow()
    y, x, swatch = canvas.shape[0] - LEGEND + 12, MARGIN + LABEL, np.full((14, 22, 3), 255, np.uint8)
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    for name, *marks in [("[MASK], or hidden again", True, False), ("condition tokens", False, True)][: 1 + condition]:
        image.paste(Image.fromarray(_marked(swatch, *np.reshape(marks, (2, 1, 1)), swatch.shape[:2])), (x, y))
        texts = [*texts, (x + 30, y, name, 12, INK)]
        x += 54 + int(draw.textlength(name, ImageFont.load_default(12)))
    for x, y, text, size, colour in texts:
        draw.text((x, y), text, colour, ImageFont.load_default(size))
    return np.asarray(image)


def _marked(
    image: UInt8[np.ndarray, "h w 3"],
    hatched: Bool[np.ndarray, "hh wh"],
    framed: Bool[np.ndarray, "hh wh"],
    cell: tuple[int, int],
) -> UInt8[np.ndarray, "h w 3"]:
    """The image with cells of `cell` pixels hatched, and a line around the region of the framed ones."""
    h, w = image.shape[:2]
    pixels = lambda cells: np.repeat(np.repeat(cells, cell[0], 0), cell[1], 1)[:h, :w]
    y, x = np.indices((h, w))
    lines = np.where(((x + y) % 6 < 1)[..., None], HATCH, PAPER)
    image = np.where(pixels(hatched)[..., None], lines, image)
    region = pixels(framed)
    padded = np.pad(region, 2)
    shifted = [padded[2 + dy : 2 + dy + h, 2 + dx : 2 + dx + w] for dy in (-2, 0, 2) for dx in (-2, 0, 2)]
    return np.where((region & ~np.all(shifted, axis=0))[..., None], MARK, image).astype(np.uint8)


def _beside(images: Sequence[np.ndarray], gap: int) -> UInt8[np.ndarray, "h W 3"]:
    space = np.full((len(images[0]), gap, 3), 255, np.uint8)
    return np.concatenate([part for image in images for part in (space, image)][1:], axis=1)


def _even(n: int, most: int) -> list[int]:
    """At most `most` of 0 .. n - 1, evenly spread from the first to the last."""
    return np.linspace(0, n - 1, min(n, most)).round().astype(int).tolist()


# Words --------------------------------------------------------------------------------------------------------------


def _text(text: str) -> UInt8[np.ndarray, "h w 3"]:
    Image, ImageDraw, _ = _pillow()
    width = int(ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength(text)) + 1
    image = Image.new("RGB", (width, 14), "white")
    ImageDraw.Draw(image).text((0, 0), text, fill="black")
    return np.asarray(image)


def _paste(canvas: np.ndarray, image: np.ndarray, y: int, x: int) -> None:
    h, w = image.shape[0], min(image.shape[1], canvas.shape[2] - x)
    canvas[:, y : y + h, x : x + w] = image[:, :w]


def _pillow() -> tuple[Any, Any, Any]:
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise UserError("labels need Pillow, which is not installed: pip install pillow") from error
    return Image, ImageDraw, ImageFont
