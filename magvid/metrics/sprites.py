"""The sprite judge: reads shape, colour, texture, track and action back from pixels alone, without learned weights.

How it reads a clip, in order: every pixel is split into background plus an amount of one of the world's colours (least
squares along the line from the clip's median colour to each colour); the colour with most mass is the entity's; centre
and size are the first two moments of its silhouette; the shape is the one whose rendering at that centre and size, turned
by the silhouette's own angular phase, correlates best over all frames; the action is the motion template with the smallest
residual over the track, where turning is measured by how well de-rotating all frames about the centre aligns them.

It never sees a label, caption or condition. It reads clips of one action (not sequences) of 8 frames or more.
"""
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jaxtyping import Float, Shaped
import numpy as np

from magvid.data import sprites

_FOLDS = {"disc": 0, "ring": 0, "triangle": 3, "square": 4, "cross": 4, "star": 5}   # rotational symmetry
_CONTRAST = 0.07     # brightness steps below this share of the colour are no texture
_SPIN_MARGIN = 0.08  # de-rotated frames must align better than still ones by this correlation


@dataclass(frozen=True)
class Reading:
    """What the judge saw. `track` is (t, 5): centre y, centre x, radius (pixels), angle (radians, modulo the shape's
    symmetry), visible (0 or 1). `confidence` in [0, 1] is the mean correlation of the silhouette with the shape."""
    shape: str
    colour: str
    texture: str
    action: str
    track: Float[np.ndarray, "t 5"]
    confidence: float


def read(video: Shaped[np.ndarray, "t h w 3"], world: str | sprites.World = "full") -> Reading:
    """Reads a clip, uint8 or float in [0, 1], as one of the world's shapes, colours, textures and actions."""
    world = sprites.as_world(world)
    pixels = _pixels(video)
    stride = max(min(pixels.shape[1:3]) // 32, 1)
    pixels = _pool(pixels, stride)
    unit = min(pixels.shape[1:3]) / 32
    colour, amount, mask = _find_entity(pixels, world)
    for reach in (2.5, 2.0):   # drop what lies further from the centre than any shape of this area reaches
        centre, area, visible = _moments(mask)
        mask = mask * (np.abs(_offsets(mask, centre)) < reach * np.sqrt(area / np.pi)[:, None, None] + unit)
    centre, area, visible = _moments(mask)
    angles = {fold: _phase(mask, centre, fold) for fold in {_FOLDS[shape] for shape in world.shapes}}
    fits = {shape: _shape_fit(shape, mask, _pose(shape, centre, area, angles)) for shape in world.shapes}
    shape = max(fits, key=fits.get)
    pose = _pose(shape, centre, area, angles)
    texture, _ = _read_texture(shape, amount, pose, world)
    action = _read_action(pose, visible, _turning(amount * mask, centre, area), unit, world)
    track = np.concatenate([pose * [stride, stride, stride, 1], visible[:, None]], 1).astype(np.float32)
    return Reading(shape, colour, texture, action, track, float(np.clip(fits[shape], 0, 1)))


def _pixels(video: np.ndarray) -> np.ndarray:
    if video.ndim != 4 or video.shape[-1] != 3 or len(video) < 2:
        raise ValueError(f"A clip of shape {video.shape}: the sprite judge reads (t h w 3) with at least two frames.")
    if video.dtype == np.uint8:
        return video / np.float32(255)
    return np.clip(np.asarray(video, np.float32), 0, 1)


def _pool(pixels: np.ndarray, stride: int) -> np.ndarray:
    t, h, w, _ = pixels.shape
    h, w = h // stride, w // stride
    return pixels[:, :h * stride, :w * stride].reshape(t, h, stride, w, stride, 3).mean((2, 4))


def _find_entity(pixels: np.ndarray, world: sprites.World) -> tuple[str, np.ndarray, np.ndarray]:
    """The colour with most mass, its amount per pixel (1 = pure colour) and its silhouette in [0, 1], both (t, h, w)."""
    ground = np.median(pixels.reshape(-1, 3), 0)
    lines = np.array([sprites.COLOURS[name] for name in world.colours]) / 255 - ground
    lengths = np.sqrt((lines**2).sum(-1))
    away = pixels - ground
    amount = (away @ (lines / lengths[:, None] ** 2).T.astype(pixels.dtype))
    off = np.maximum((away**2).sum(-1, keepdims=True) - (amount * lengths) ** 2, 0)   # squared distance to each line
    member = np.exp(-(off - off.min(-1, keepdims=True)) / (2 * 0.1**2))
    member /= member.sum(-1, keepdims=True)
    mass = (np.clip(amount - 0.2, 0, 1) * member).sum((0, 1, 2))
    best = int(mass.argmax())
    amount = amount[..., best]
    mask = np.clip((amount - 0.15) / 0.3, 0, 1) * np.clip(3 * member[..., best], 0, 1)
    return world.colours[best], amount, mask


def _moments(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre (t, 2), area (t,) in pixels, and whether anything was seen (t,)."""
    t, h, w = mask.shape
    area = mask.sum((1, 2))
    visible = area > 0.15 * np.median(area) + 1e-3
    safe = np.maximum(area, 1e-6)
    y = (mask.sum(2) @ (np.arange(h) + 0.5)) / safe
    x = (mask.sum(1) @ (np.arange(w) + 0.5)) / safe
    centre = np.where(visible[:, None], np.stack([y, x], 1), [h / 2, w / 2])
    return centre, safe, visible


@lru_cache
def _unit_area(shape: str) -> float:
    alpha, _ = sprites.rasterise(shape, "plain", np.array([[50, 50, 40.0, 0]]), *[np.arange(100)[None] + 0.5] * 2)
    return float(alpha.sum() / 40**2)


def _offsets(mask: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """x + iy of every pixel from its frame's centre, (t, h, w) complex."""
    _, h, w = mask.shape
    y = np.arange(h)[:, None] + 0.5 - centre[:, 0, None, None]
    return np.arange(w) + 0.5 - centre[:, 1, None, None] + 1j * y


def _phase(mask: np.ndarray, centre: np.ndarray, fold: int) -> np.ndarray:
    """Angle (t,) of the strongest `fold`-fold direction of the silhouette, modulo 2 pi / fold."""
    if not fold:
        return np.zeros(len(mask))
    z = _offsets(mask, centre)
    return np.angle((mask * z**fold / np.maximum(np.abs(z), 1e-6) ** (fold - 2)).sum((1, 2))) / fold


def _pose(shape: str, centre: np.ndarray, area: np.ndarray, angles: dict[int, np.ndarray]) -> np.ndarray:
    """(t, 4): the pose with which `shape` has this centre, area and angular phase."""
    radius = np.sqrt(area / _unit_area(shape))
    fold = _FOLDS[shape]
    first = {0: 0, 3: -np.pi / 2, 4: np.pi / 4 if shape == "square" else 0, 5: -np.pi / 2}[fold]  # a tip at angle 0
    angle = angles[fold] - first
    if fold:
        step = 2 * np.pi / fold
        angle = np.unwrap(angle, period=step)
        angle = angle - step * np.round(angle[0] / step)
    return np.concatenate([centre, radius[:, None], angle[:, None]], 1)


def _window(pose: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns (t, n) of each frame's window about the entity."""
    size = min(2 * int(1.3 * np.median(pose[:, 2]) * 1.3 + 2) + 1, height, width)
    corner = np.clip(np.floor(pose[:, :2]).astype(int) - size // 2, 0, [height - size, width - size])
    return corner[:, :1] + np.arange(size), corner[:, 1:] + np.arange(size)


def _shape_fit(shape: str, mask: np.ndarray, pose: np.ndarray) -> float:
    """Mean over frames of the correlation of the silhouette with the shape rendered at this pose."""
    rows, columns = _window(pose, *mask.shape[1:])
    seen = mask[np.arange(len(mask))[:, None, None], rows[:, :, None], columns[:, None, :]]
    drawn, _ = sprites.rasterise(shape, "plain", pose, rows + 0.5, columns + 0.5)
    seen, drawn = (v - v.mean((1, 2), keepdims=True) for v in (seen, drawn))
    norm = np.sqrt((seen**2).sum((1, 2)) * (drawn**2).sum((1, 2)))
    return float(((seen * drawn).sum((1, 2)) / np.maximum(norm, 1e-6)).mean())


def _read_texture(shape: str, amount: np.ndarray, pose: np.ndarray, world: sprites.World) -> tuple[str, float]:
    """The texture whose dark parts explain most of the brightness inside the silhouette, and how dark they are."""
    rows, columns = _window(pose, *amount.shape[1:])
    seen = amount[np.arange(len(amount))[:, None, None], rows[:, :, None], columns[:, None, :]]
    fold = _FOLDS[shape]
    turns = np.arange(fold) * 2 * np.pi / fold if fold else np.arange(12) * np.pi / 12
    best = ("plain" if "plain" in world.textures else world.textures[0], 0.0, 0.0)
    for texture in world.textures:
        for turn in turns if texture != "plain" else ():
            turned = pose + [0, 0, 0, turn]
            alpha, shade = sprites.rasterise(shape, texture, turned, rows + 0.5, columns + 0.5)
            inside = alpha >= 0.999
            count = np.maximum(inside.sum((1, 2), keepdims=True), 1)
            a, b = ((v - (v * inside).sum((1, 2), keepdims=True) / count) * inside for v in (seen, shade))
            dot, power = (a * b).sum(), (b * b).sum()
            contrast = dot / max(power, 1e-6)
            share = contrast * dot / max((a * a).sum(), 1e-6)
            if contrast > _CONTRAST and share > best[2]:
                best = (texture, contrast, share)
    return best[0], best[1]


def _turning(image: np.ndarray, centre: np.ndarray, area: np.ndarray) -> tuple[float, float]:
    """How well all frames agree when held still, and when turned back at the best rate of a spin: two numbers <= 1.

    Rings about the centre are Fourier-transformed over the polar angle, in which a turn is a phase."""
    t, h, w = image.shape
    rings, spokes, orders = np.array([0.3, 0.5, 0.7, 0.9, 1.1]), 32, np.arange(1, 9)
    radius = np.median(np.sqrt(area / np.pi))
    phi = np.arange(spokes) * 2 * np.pi / spokes
    y = centre[:, 0, None, None] - 0.5 + radius * rings[:, None] * np.sin(phi)
    x = centre[:, 1, None, None] - 0.5 + radius * rings[:, None] * np.cos(phi)
    y, x = np.clip(y, 0, h - 1.001), np.clip(x, 0, w - 1.001)
    i, j = y.astype(int), x.astype(int)
    fy, fx, k = y - i, x - j, np.arange(t)[:, None, None]
    polar = ((1 - fy) * ((1 - fx) * image[k, i, j] + fx * image[k, i, j + 1])
             + fy * ((1 - fx) * image[k, i + 1, j] + fx * image[k, i + 1, j + 1]))
    waves = np.fft.fft(polar, axis=-1)[..., orders] * np.sqrt(rings)[:, None]        # (t, rings, orders)
    rates = np.radians(np.concatenate([[0], np.arange(110, 211, 5), -np.arange(110, 211, 5)]))
    back = np.exp(-1j * rates[:, None, None] * orders * (np.arange(t) / (t - 1))[:, None])   # (rates, t, orders)
    together = np.abs(np.einsum("atk,trk->ark", back, waves)) ** 2
    floor = t * t * len(rings) * (0.05 * spokes) ** 2 * 0.2
    score = together.sum((1, 2)) / (t * (np.abs(waves) ** 2).sum() + floor)
    return float(score[0]), float(score[1:].max())


def _templates(t: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Straight and periodic motions of unit size over the clip: {action: (dy (t,), dx (t,))}."""
    still, s = np.zeros(t), np.arange(t) / (t - 1)
    arc = np.clip((s - 0.2) / 0.6, 0, 1)
    return {"left": (still, -s), "right": (still, s), "up": (-s, still), "down": (s, still),
            "bounce": (-np.abs(np.sin(2 * np.pi * s)), still), "jump": (-4 * arc * (1 - arc), still)}


def _read_action(pose: np.ndarray, visible: np.ndarray, turning: tuple[float, float], unit: float,
                 world: sprites.World) -> str:
    """The action whose template, at its best size not below a visible one, leaves the smallest residual."""
    weight = visible / max(visible.sum(), 1)
    t, s = len(pose), np.arange(len(pose)) / (len(pose) - 1)

    def centred(v):
        return v - weight @ v

    y, x, size = (centred(pose[:, k] / unit) for k in range(3))

    def left_over(value, template, least):
        template = centred(template)
        power = max(weight @ template**2, 1e-9)
        return weight @ (value - max(weight @ (value * template) / power, least) * template) ** 2

    motions, no = _templates(t), {"y": weight @ y**2, "x": weight @ x**2, "size": weight @ size**2}
    errors = {}
    for action in world.actions:
        if action in motions:
            dy, dx = motions[action]
            moved = left_over(y, dy, 3.0) + no["x"] if dy.any() else left_over(x, dx, 3.0) + no["y"]
            errors[action] = moved + no["size"]
        elif action in ("grow", "shrink"):
            errors[action] = no["y"] + no["x"] + left_over(size, s if action == "grow" else -s, 2.0)
        elif action == "orbit":
            errors[action] = _orbit_error(y, x, weight, s) + no["size"]
        elif action in ("stand", "spin"):
            still, spun = turning
            lose = (still < spun - _SPIN_MARGIN) == (action == "stand")
            errors[action] = no["y"] + no["x"] + no["size"] + (0.05 if lose and len({"stand", "spin"} & set(world.actions)) > 1 else 0)
    return min(errors, key=errors.get)


def _orbit_error(y: np.ndarray, x: np.ndarray, weight: np.ndarray, s: np.ndarray) -> float:
    """Residual of the best full circle (radius >= 1.5 units) in either direction."""
    path, best = x + 1j * y, np.inf
    for sign in (1, -1):
        circle = np.exp(sign * 2j * np.pi * s)
        circle = circle - weight @ circle
        fit = (weight @ (path * circle.conj())) / max(weight @ np.abs(circle) ** 2, 1e-9)
        fit *= max(1.5 / max(abs(fit), 1e-9), 1)
        best = min(best, weight @ np.abs(path - fit * circle) ** 2)
    return best
