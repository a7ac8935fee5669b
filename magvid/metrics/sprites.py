"""The sprite judge: reads shape, colour, texture, track and action back from pixels alone, without learned weights.

How it reads a clip, in order: every pixel is split into background plus an amount of one of the world's colours (least
squares along the line from the clip's median colour to each colour); the colour with most mass is the entity's; centre
and size are its silhouette's mean and area; the shape is the one whose rendering at that centre and size, turned by the
silhouette's own angular phase, correlates best over all frames; the action is the motion template with the smallest
residual over the track, where turning is measured by how well de-rotating all frames about the centre aligns them.

It never sees a label, caption or condition. It reads clips of one action (not sequences) of 8 frames or more.
"""
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jaxtyping import Float, Shaped
import numpy as np

from magvid.data import sprite_world as sprites

_FOLDS = {"disc": 0, "ring": 0, "triangle": 3, "square": 4, "cross": 4, "star": 5}   # rotational symmetry
_TEXTURE_PRICE = 1.15  # a texture's residual must be smaller than the plain one's by this factor
_TURN_COST = 0.05    # units^2: tells stand from spin, whose tracks are the same
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
    pixels = pixels_of(video)
    stride = max(min(pixels.shape[1:3]) // 32, 1)
    pixels = _pool(pixels, stride)
    unit = min(pixels.shape[1:3]) / 32
    colour, amount, mask = _find_entity(pixels, world)
    for reach in (2.5, 2.0):   # drop what lies further from the centre than any shape of this area reaches
        centre, area, visible = _moments(mask)
        mask = mask * (np.abs(_offsets(mask, centre)) < reach * np.sqrt(area / np.pi)[:, None, None] + unit)
    centre, area, visible = _moments(mask)
    angles = {fold: _phase(mask, centre, fold) for fold in {_FOLDS[shape] for shape in world.shapes}}
    some = np.unique(np.linspace(0, len(mask) - 1, 8).round().astype(int))
    fits = {shape: _shape_fit(shape, mask[some], _pose(shape, centre, area, angles)[some]) for shape in world.shapes}
    shape = max(fits, key=fits.get)
    pose = _pose(shape, centre, area, angles)
    texture, factor = _read_texture(shape, amount * (mask > 0), pose, world)
    pose[:, 2] *= factor
    action = _read_action(pose, visible, _turning(amount * mask, centre, area), unit, world)
    track = np.concatenate([pose * [stride, stride, stride, 1], visible[:, None]], 1).astype(np.float32)
    return Reading(shape, colour, texture, action, track, float(np.clip(fits[shape], 0, 1)))


def pixels_of(video: np.ndarray) -> np.ndarray:
    if video.ndim != 4 or video.shape[-1] != 3 or len(video) < 2:
        raise ValueError(f"A clip of shape {video.shape}: the sprite judge reads (t h w 3) with at least two frames.")
    if video.dtype == np.uint8:
        return video / np.float32(255)
    if not np.isfinite(video).all():
        raise ValueError("A clip holds NaN or infinity: the sprite judge reads numbers in [0, 1].")
    return np.clip(np.asarray(video, np.float32), 0, 1)


def _pool(pixels: np.ndarray, stride: int) -> np.ndarray:
    t, h, w, _ = pixels.shape
    h, w = h // stride, w // stride
    return pixels[:, :h * stride, :w * stride].reshape(t, h, stride, w, stride, 3).mean((2, 4))


def _find_entity(pixels: np.ndarray, world: sprites.World) -> tuple[str, np.ndarray, np.ndarray]:
    """The colour with most mass, its amount per pixel (1: pure colour) and its silhouette in [0, 1], both (t, h, w)."""
    amount, away, lengths = _amounts(pixels, world.colours)
    off = np.maximum((away**2).sum(-1, keepdims=True) - (amount * lengths) ** 2, 0)   # squared distance to each line
    member = np.exp(-(off - off.min(-1, keepdims=True)) / (2 * 0.1**2))
    member /= member.sum(-1, keepdims=True)
    mass = (np.clip(amount - 0.2, 0, 1) * member).sum((0, 1, 2))
    best = int(mass.argmax())
    amount = amount[..., best]
    mask = _silhouette(amount) * np.clip(3 * member[..., best], 0, 1)
    return world.colours[best], amount, mask


def _amounts(pixels: np.ndarray, colours: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each colour how much is in a pixel (t, h, w, n), from the background (0) to the pure colour (1); the pixels' distance from
    the background (t, h, w, 3), and the colours' (n,).
    """
    ground = np.median(pixels.reshape(-1, 3), 0)
    lines = np.array([sprites.COLOURS[name] for name in colours]) / 255 - ground
    lengths = np.sqrt((lines**2).sum(-1))
    away = pixels - ground
    return away @ (lines / lengths[:, None] ** 2).T.astype(pixels.dtype), away, lengths


def amount_of(pixels: Float[np.ndarray, "t h w 3"], colour: str) -> Float[np.ndarray, "t h w"]:
    """How much of `colour` is in each pixel, 1 where it is pure; least squares along the line from the clip's median colour."""
    return _amounts(pixels, (colour,))[0][..., 0]


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
    size = min(2 * int(1.7 * np.median(pose[:, 2]) + 2) + 1, height, width)
    corner = np.clip(np.floor(pose[:, :2]).astype(int) - size // 2, 0, [height - size, width - size])
    return corner[:, :1] + np.arange(size), corner[:, 1:] + np.arange(size)


def _cut(images: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return images[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]


def _shape_fit(shape: str, mask: np.ndarray, pose: np.ndarray) -> float:
    """Mean over frames of the correlation of the silhouette with the shape's own, rendered at this pose.

    A blurred picture's silhouette is larger than its shape: so the shape is also drawn smaller and blurred."""
    rows, columns = _window(pose, *mask.shape[1:])
    seen = _cut(mask, rows, columns)
    seen = seen - seen.mean((1, 2), keepdims=True)
    power, best = (seen**2).sum((1, 2)), 0.0
    for passes, factor in ((0, 0.95), (1, 0.9), (3, 0.85), (6, 0.8)):
        drawn, _ = sprites.rasterise(shape, "plain", pose * [1, 1, factor, 1], rows + 0.5, columns + 0.5)
        drawn = _silhouette(_soften(drawn, passes))
        drawn = drawn - drawn.mean((1, 2), keepdims=True)
        norm = np.sqrt(power * (drawn**2).sum((1, 2)))
        best = max(best, ((seen * drawn).sum((1, 2)) / np.maximum(norm, 1e-6)).mean())
    return float(best)


def _silhouette(amount: np.ndarray) -> np.ndarray:
    """1 where the entity is, also in its darkest stripes; 0 where it is not."""
    return np.clip((amount - 0.15) / 0.3, 0, 1)


def _read_texture(shape: str, amount: np.ndarray, pose: np.ndarray, world: sprites.World) -> tuple[str, float]:
    """The texture whose rendering leaves the smallest residual on a few frames, and the factor on the radius with it.

    Every frame may show the texture turned by the shape's symmetry (a disc's or ring's by anything); all are compared
    sharp and blurred, so that a soft picture is not taken for a texture."""
    frames = np.linspace(0, len(pose) - 1, min(len(pose), 4)).round().astype(int)
    pose, amount = pose[frames], amount[frames]
    rows, columns = _window(pose, *amount.shape[1:])
    seen = _cut(amount, rows, columns)
    power = np.maximum((seen**2).sum((1, 2)), 1e-6)
    fold = _FOLDS[shape]
    turns = np.arange(fold) * 2 * np.pi / fold if fold else np.arange(10) * np.pi / 10
    best = (np.inf, world.textures[0], 1.0)
    for factor in (0.9, 0.95, 1.0):
        for texture in world.textures:
            errors = []
            for turn in turns if texture != "plain" else (0.0,):
                turned = pose * [1, 1, factor, 1] + [0, 0, 0, turn]
                alpha, shade = sprites.rasterise(shape, texture, turned, rows + 0.5, columns + 0.5)
                errors += [1 - (seen * drawn).sum((1, 2)) ** 2 / power / np.maximum((drawn**2).sum((1, 2)), 1e-6)
                           for drawn in (alpha * shade, _soften(alpha * shade, 1), _soften(alpha * shade, 2))]
            error = np.min(errors, 0).mean() * (1.0 if texture == "plain" else _TEXTURE_PRICE)
            best = min(best, (error, texture, factor))
    return best[1], best[2]


def _soften(images: np.ndarray, passes: int) -> np.ndarray:
    """Blurred along both axes of (n, r, c) by a variance of 0.4 square pixels per pass."""
    rows, columns = (_blur(size, passes).astype(images.dtype) for size in images.shape[1:])
    return rows @ images @ columns


@lru_cache(maxsize=None)
def _blur(size: int, passes: int) -> np.ndarray:
    """The blur along an axis that is joined at its ends, as a symmetric matrix: many small windows are blurred by it."""
    one = np.eye(size)
    return np.linalg.matrix_power(0.6 * one + 0.2 * (np.roll(one, 1, 0) + np.roll(one, -1, 0)), passes)


def _turning(image: np.ndarray, centre: np.ndarray, area: np.ndarray) -> tuple[float, float]:
    """How well all frames agree when held still, and when turned back at the best rate of a spin: two numbers <= 1.

    Rings about the centre are Fourier-transformed over the polar angle, in which a turn is a phase."""
    t, rings, spokes, orders = len(image), np.array([0.3, 0.5, 0.7, 0.9, 1.1]), 32, np.arange(1, 9)
    polar = _polar(image, centre, np.median(np.sqrt(area / np.pi)) * rings, spokes)
    waves = np.fft.fft(polar, axis=-1)[..., orders] * np.sqrt(rings)[:, None]        # (t, rings, orders)
    rates = np.radians(np.concatenate([[0], np.arange(110, 211, 5), -np.arange(110, 211, 5)]))
    back = np.exp(-1j * rates[:, None, None] * orders * (np.arange(t) / (t - 1))[:, None])   # (rates, t, orders)
    together = np.abs(np.einsum("atk,trk->ark", back, waves)) ** 2
    noise = t * t * len(rings) * 0.2 * (0.05 * spokes) ** 2     # what a featureless disc's waves amount to
    score = together.sum((1, 2)) / (t * (np.abs(waves) ** 2).sum() + noise)
    return float(score[0]), float(score[1:].max())


def _polar(image: np.ndarray, centre: np.ndarray, radii: np.ndarray, spokes: int) -> np.ndarray:
    """Bilinear samples (t, radii, spokes) on circles about each frame's centre."""
    t, h, w = image.shape
    phi = np.arange(spokes) * 2 * np.pi / spokes
    y = centre[:, 0, None, None] - 0.5 + radii[:, None] * np.sin(phi)
    x = centre[:, 1, None, None] - 0.5 + radii[:, None] * np.cos(phi)
    y, x = np.clip(y, 0, h - 1.001), np.clip(x, 0, w - 1.001)
    i, j = y.astype(int), x.astype(int)
    fy, fx, k = y - i, x - j, np.arange(t)[:, None, None]
    top = (1 - fx) * image[k, i, j] + fx * image[k, i, j + 1]
    bottom = (1 - fx) * image[k, i + 1, j] + fx * image[k, i + 1, j + 1]
    return (1 - fy) * top + fy * bottom


def _read_action(pose: np.ndarray, visible: np.ndarray, turning: tuple[float, float], unit: float,
                 world: sprites.World) -> str:
    """The action that leaves the smallest mean squared residual over the track, in units^2.

    Each action is a template with one free size, held at or above a visible one; the path is x + iy."""
    weight = visible / max(visible.sum(), 1)
    path = _centred((pose[:, 1] + 1j * pose[:, 0]) / unit, weight)
    size = _centred(pose[:, 2] / unit, weight)
    still, turned = turning
    turns = turned > still + _SPIN_MARGIN
    errors = {}
    for action in world.actions:
        moves, grows = _templates(action, len(pose))
        errors[action] = min(_residual(path, move, 3.0, weight) for move in moves) + _residual(size, grows, 2.0, weight)
        if action in ("stand", "spin") and turns != (action == "spin"):
            errors[action] += _TURN_COST
    return min(errors, key=errors.get)


def _templates(action: str, frames: int) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Paths x + iy that the action may follow, and its change of radius; of unit size, zero where there is none."""
    s, none = np.arange(frames) / (frames - 1), np.zeros(frames)
    arc = np.clip((s - 0.2) / 0.6, 0, 1)
    paths = {"left": (-s,), "right": (s,), "up": (-1j * s,), "down": (1j * s,),
             "bounce": (-1j * np.abs(np.sin(2 * np.pi * s)),), "jump": (-4j * arc * (1 - arc),),
             "orbit": (0.5 * np.exp(2j * np.pi * s), 0.5 * np.exp(-2j * np.pi * s))}
    return paths.get(action, (none,)), {"grow": s, "shrink": -s}.get(action, none)


def _centred(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return values - weight @ values


def _residual(values: np.ndarray, template: np.ndarray, least: float, weight: np.ndarray) -> float:
    """Mean squared distance from the template at its best size >= `least`; a circle may also begin anywhere."""
    template = _centred(template, weight)
    power = weight @ np.abs(template) ** 2
    if power < 1e-9:
        return float(weight @ np.abs(values) ** 2)
    fit = weight @ (values * template.conj()) / power
    circle = np.ptp(template.real) > 0 and np.ptp(template.imag) > 0
    fit = fit * max(least / max(abs(fit), 1e-9), 1) if circle else max(fit.real, least)
    return float(weight @ np.abs(values - fit * template) ** 2)


@dataclass(frozen=True)
class SpriteJudge:
    """Metric: does a generated clip show what was asked for, as read back by the judge?

    Attributes:
      world: a preset's name or a `World`; give the one the clips come from. Its name belongs beside every number.
    """
    world: str | sprites.World = "full"

    @property
    def world_name(self) -> str:
        return sprites.as_world(self.world).name

    def features(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Whether each clip was read as what the batch's ids say: bool (b,) by name.

        Args:
          batch: `video` (b t h w 3), uint8 or float in [0, 1], and `label` (b,), index into `Sprites.classes`; where
            given also `colour` and `texture` (b,), and `valid` (b,), whose false rows are left out. Ids are only
            compared with the reading, never shown to the judge.
        """
        world = sprites.as_world(self.world)
        rows = np.flatnonzero(np.asarray(batch.get("valid", np.ones(len(batch["label"]), bool))))
        readings = [read(np.asarray(batch["video"][row]), world) for row in rows]
        pairs = [world.pairs[int(batch["label"][row])] for row in rows]
        out = {"shape": [seen.shape == shape for seen, (shape, _) in zip(readings, pairs)],
               "action": [seen.action == action for seen, (_, action) in zip(readings, pairs)]}
        for part, table in (("colour", tuple(sprites.COLOURS)), ("texture", sprites.TEXTURES)):
            if part in batch:
                out[part] = [getattr(seen, part) == table[int(batch[part][row])] for seen, row in zip(readings, rows)]
        out = {name: np.array(values, bool) for name, values in out.items()}
        return {**out, "confidence": np.array([seen.confidence for seen in readings], np.float64)}

    def result(self, features: dict[str, np.ndarray]) -> dict[str, float]:
        """Shares of all clips in [0, 1]: `accuracy` (shape and action both right) with its 95 % Wilson interval
        [`accuracy_low`, `accuracy_high`] and `chance`; each part's accuracy; `identity_accuracy` (shape and colour);
        `entity_accuracy` (and texture); `told_accuracy` (shape, colour and action), with its interval."""
        parts = {name: np.asarray(values) for name, values in features.items() if name != "confidence"}
        right = parts["shape"] & parts["action"]
        if not len(right):
            raise ValueError("The sprite judge has read no clip: give it at least one valid row.")
        low, high = wilson(int(right.sum()), len(right))
        out = {"accuracy": float(right.mean()), "accuracy_low": low, "accuracy_high": high,
               "chance": 1 / len(sprites.as_world(self.world).pairs), "n": float(len(right)),
               "confidence": float(np.mean(features["confidence"]))}
        world = sprites.as_world(self.world)
        told = {"shape": world.shapes, "action": world.actions, "colour": world.colours, "texture": world.textures}
        parts = {name: values for name, values in parts.items() if len(told[name]) > 1}  # no guess is wrong of one
        out.update({f"{name}_accuracy": float(values.mean()) for name, values in parts.items()})
        if "colour" in parts:
            out["identity_accuracy"] = float((parts["shape"] & parts["colour"]).mean())
            if "texture" in parts:
                out["entity_accuracy"] = float((parts["shape"] & parts["colour"] & parts["texture"]).mean())
            told = parts["shape"] & parts["colour"] & np.asarray(features["action"])
            low, high = wilson(int(told.sum()), len(told))
            out |= {"told_accuracy": float(told.mean()), "told_accuracy_low": low, "told_accuracy_high": high}
        return out


def wilson(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share (1927); 95 % by default."""
    share, spread = right / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z * np.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(float(middle - half), 0.0), min(float(middle + half), 1.0)
