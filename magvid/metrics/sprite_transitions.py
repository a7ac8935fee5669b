"""Transitions between two actions of a sprite, read back from pixels: does the sprite go on where it was, as what it was?

The sprite's track is fitted, not taken as the middle of its pixels: in every frame, the place and size at which its drawing leaves the least
squared residual. So a sprite that fades out here and in there jumps, where its pixels' middle would move smoothly.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.fft import irfft2, rfft2

from magvid.data import sprite_world as sprites
from magvid.data.sprite_world import rasterise
from magvid.metrics.frames import with_intervals
from magvid.metrics.sprites import amount_of, pixels_of, read, wilson

RADII = np.arange(4.5, 10.75, 0.5)  # units


def fit_track(
    video: Shaped[np.ndarray, "t h w 3"], shape: str, colour: str, angle: Float[np.ndarray, "t"]
) -> tuple[Float[np.ndarray, "t 3"], Float[np.ndarray, "t"]]:
    """Centre y, centre x and radius (pixels) of a plain sprite in every frame, by least squares, and how well its drawing there
    agrees with the frame: their cosine, at most 1. `angle` in radians.
    """
    pixels = pixels_of(video)
    t, h, w, _ = pixels.shape
    unit = min(h, w) / 32
    seen = np.clip(amount_of(pixels, colour), 0, 1).astype(np.float32)
    waves, errors, drawings = rfft2(seen), [], []
    turns, turn = np.unique(angle, return_inverse=True)
    n, rows, columns = len(turns), np.arange(h) + 0.5, np.arange(w) + 0.5
    for radius in RADII * unit:
        pose = np.stack([np.full(n, h // 2 + 0.5), np.full(n, w // 2 + 0.5), np.full(n, radius), turns], axis=1)
        drawn, _ = rasterise(shape, "plain", pose, np.repeat(rows[None], n, 0), np.repeat(columns[None], n, 0))
        drawn = np.roll(drawn.astype(np.float32), (-(h // 2), -(w // 2)), axis=(1, 2))  # centred on pixel (0, 0), wrapped around
        match = irfft2(waves * rfft2(drawn)[turn].conj(), s=(h, w))
        drawings.append((drawn**2).sum((1, 2))[turn])
        errors.append(drawings[-1][:, None, None] - 2 * match)
    errors, drawings = np.stack(errors, axis=1), np.stack(drawings, axis=1)  # (t r y x) without the frame's power; (t r)
    track, agrees = [], []
    for error, power, own in zip(errors, drawings, (seen**2).sum((1, 2)), strict=True):
        r, y, x = best = np.unravel_index(error.argmin(), error.shape)
        place = [i + _vertex(np.moveaxis(error, axis, 0)[:, *np.delete(best, axis)], i) for axis, i in enumerate(best)]
        track.append((place[1] + 0.5, place[2] + 0.5, (RADII[0] + place[0] * (RADII[1] - RADII[0])) * unit))
        agrees.append((power[r] - error[r, y, x]) / 2 / np.sqrt(max(power[r] * own, 1e-6)))
    return np.array(track), np.array(agrees)


def _vertex(values: Float[np.ndarray, "n"], i: int) -> float:
    """How far from place i the parabola through it and its neighbours is lowest, at most half a place."""
    if not 0 < i < len(values) - 1:
        return 0.0
    before, here, after = values[i - 1 : i + 2]
    bend = before - 2 * here + after
    return float(np.clip((before - after) / (2 * bend), -0.5, 0.5)) if bend > 0 else 0.0


SHARES = ("identity", "before", "after")
NEEDS = ("video", "target", "shape", "colour", "actions", "track")


@dataclass(frozen=True)
class SpriteTransition:
    """Metric of batch["video"] in the gap that batch["given"] (b t h w 1) leaves, against batch["target"]; of the source also
    `shape`, `colour` (b,), `actions` (b t) and `track` (b t 5). Says nothing where no frames are given, or there is no gap between them.

    position: distance (pixels; of centre and radius together) between the sprite and the real one in the first and last frame of the gap.
    velocity: the same of the first and the last step inside of the gap (pixels per frame).
    track: distance over the whole gap. step: the largest step from frame to frame, boundaries included. agrees: of the sprite's drawing
    with the gap's frames (cosine). identity: whether shape and colour are read right from the gap's frames. before, after: whether
    the action is, from the frames up to the change of actions, and from those after it.
    """

    world: str | sprites.World = "small"
    resamples: int = 2000
    seed: int = 0

    def features(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if not {"given", *NEEDS} <= set(batch):
            return {}
        known = np.asarray(batch["given"]).all((2, 3, 4))
        if known.all() or not (known[:, 0] & known[:, -1]).all():
            return {}
        rows = np.flatnonzero(np.asarray(batch.get("valid", np.ones(len(known), bool))))
        found = [self._row({k: np.asarray(batch[k][i]) for k in NEEDS}, known[i]) for i in rows]
        return {name: np.array([f[name] for f in found], np.float64) for name in found[0]} if found else {}

    def _row(self, row: Mapping[str, np.ndarray], known: Bool[np.ndarray, "t"]) -> dict[str, float]:
        gap = np.flatnonzero(~known)
        s, e = gap[0], gap[-1] + 1
        shape, colour = sprites.SHAPES[row["shape"]], tuple(sprites.COLOURS)[row["colour"]]
        (p, agrees), (q, _) = (fit_track(row[name], shape, colour, row["track"][:, 3]) for name in ("video", "target"))
        away = np.linalg.norm(p - q, axis=1)
        step, true_step = np.diff(p, axis=0), np.diff(q, axis=0)
        off = np.linalg.norm(step - true_step, axis=1)
        change = int(np.argmax(row["actions"] != row["actions"][0])) or len(known)
        inside = read(row["video"][s - (e - s < 2) : e], self.world)  # of at least two frames
        acted = lambda part, place: read(part, self.world).action == sprites.ACTIONS[row["actions"][place]] if len(part) > 7 else np.nan
        return dict(
            length=e - s,
            position=(away[s] + away[e - 1]) / 2,
            velocity=(off[s] + off[max(e - 2, s)]) / 2,
            track=away[s:e].mean(),
            agrees=agrees[s:e].mean(),
            step=np.linalg.norm(step[s - 1 : e], axis=1).max(),
            identity=(inside.shape, inside.colour) == (shape, colour),
            before=acted(row["video"][:change], 0),
            after=acted(row["video"][change:], -1),
        )

    def result(self, features: Mapping[str, Float[np.ndarray, "n"]]) -> dict[str, float]:
        """Means over the clips with 95 % intervals `NAME_low`, `NAME_high`: of shares Wilson's, of the others by bootstrap. `track_4`,
        `track_8`, ...: of the gaps of so many frames alone.
        """
        length, numbers = features["length"], {}
        values = {k: v for k, v in features.items() if k != "length"}
        values |= {f"track_{n:.0f}": features["track"][length == n] for n in np.unique(length)}
        for name, found in values.items():
            found = found[np.isfinite(found)]
            if name in SHARES and len(found):
                low, high = wilson(int(found.sum()), len(found))
                numbers |= {name: float(found.mean()), f"{name}_low": low, f"{name}_high": high}
            elif len(found):
                numbers |= with_intervals({name: found}, self.resamples, self.seed)
        return numbers
