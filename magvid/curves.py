"""Curves of a run: read from its metrics, drawn as static SVG (no plotting library, no script)."""

import html
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

Curve = tuple[Sequence[float], Sequence[float]]  # steps, values
Points = tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]  # the same, fit to be drawn
WIDTH, HEIGHT = 480, 240  # of the view box: about one to one on a page, so that text stays readable on a phone
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 8, 26  # margins, for the numbers of the axes
COLOURS = 6  # classes c0 .. c5 of the page's style sheet
POINTS = 400  # a longer curve is drawn as the means of so many equal stretches


def read_curves(workdir: str | os.PathLike) -> dict[str, Curve]:
    """Reads the `metrics.jsonl` of a run folder -> {name: (steps, values)} in order of appearance.

    A resumed run logs some steps again: the later line counts, and what its name had logged beyond it is dropped.
    Lines that a crash cut off are ignored. Raises ValueError for a missing file and for records that have no step.
    """
    path = pathlib.Path(workdir) / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{path} is missing: {workdir} is not the folder of a run that has logged something")
    curves = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # an empty line, or what a killed writer left
            continue
        if not isinstance(record, dict) or not isinstance(record.get("step"), int | float):
            raise ValueError(f'{path}, line {number}, is not a JSON object with a number "step": {line[:60]!r}')
        step = record.pop("step")
        for name, value in record.items():
            if isinstance(value, int | float):
                steps, values = curves.setdefault(name, ([], []))
                while steps and steps[-1] >= step:
                    steps.pop(), values.pop()
                steps.append(step), values.append(value)
    return curves


def drawable(series: Mapping[str, Curve], log: bool = False) -> tuple[dict[str, Points], int]:
    """The curves without values that are not finite (or not positive where `log`), and how many those were.

    Empty curves are dropped. Raises ValueError where steps and values are not flat lists of one length.
    """
    kept, dropped = {}, 0
    for name, (steps, values) in series.items():
        x, y = np.asarray(steps, np.float64), np.asarray(values, np.float64)
        if x.shape != y.shape or x.ndim != 1:
            raise ValueError(f"curve {name!r} needs as many steps as values in flat lists, got {x.shape}, {y.shape}")
        good = np.isfinite(x) & np.isfinite(y) & ((y > 0) | (not log))
        dropped += int((~good).sum())
        if good.any():
            kept[name] = x[good], y[good]
    return kept, dropped


def line_plot(
    title: str,
    series: Mapping[str, Points],
    log: bool = False,
    smooth: float = 0.0,
    target: float | None = None,
) -> str:
    """An SVG element with one line per {name: (steps, values)}.

    The curves must be `drawable`. smooth: weight in [0, 1) of the mean (see `smoothed`) that is drawn over the faint
    raw curve. target: value of a dashed line. The alternative text gives first and last values.
    """
    scale = np.log10 if log else np.asarray
    goals = [target] if target is not None and (target > 0 or not log) else []
    drawn = [(_thin(x), _thin(scale(y)), _thin(smoothed(scale(y), smooth))) for x, y in series.values()]
    x0, x1 = _span(np.concatenate([x for x, _, _ in drawn]), margin=0)
    y0, y1 = _span(np.concatenate([y for _, y, _ in drawn] + [scale(goals)]), margin=0.05)

    def px(x):
        return LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)

    def py(y):
        return HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - BOTTOM - TOP)

    parts = [f'<text x="{LEFT - 18}" y="{HEIGHT - 8}" text-anchor="end">step</text>']
    parts += [_text(px(v), HEIGHT - 8, "middle", v) for v in ticks(x0, x1)]
    for value in (log_ticks if log else ticks)(y0, y1):
        y = py(scale(value))
        parts.append(_rule(y, "rule") + _text(LEFT - 6, y + 4, "end", value))
    for value in goals:
        y = py(scale(value))
        parts.append(_rule(y, "target") + _text(WIDTH - RIGHT, y - 5, "end", value, "target "))
    for i, (x, y, mean) in enumerate(drawn):
        if smooth:
            parts.append(_line(px(x), py(y), f"{colour(i)} faint"))
        parts.append(_line(px(x), py(mean), colour(i)))
    ends = "; ".join(f"{name} from {y[0]:.4g} to {y[-1]:.4g}" for name, (_, y) in series.items())
    alt = html.escape(f"{title}, {max(x[-1] for x, _ in series.values()):.0f} steps: {ends}.")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{alt}">{"".join(parts)}</svg>'


def colour(index: int) -> str:
    """Class names of the curve at `index`: the colours return, dashed."""
    return f"c{index % COLOURS}{' again' * (index >= COLOURS)}"


def smoothed(values: Float[np.ndarray, "n"], weight: float) -> Float[np.ndarray, "n"]:
    """Mean over all values, weighted by weight^distance: looking both ways, it does not lag where a curve is steep."""
    if not 0 <= weight < 1:
        raise ValueError(f"smooth must lie in [0, 1), got {weight}")
    total, mass = np.zeros(len(values)), np.zeros(len(values))
    for order in (slice(None), slice(None, None, -1)):
        mean = weights = 0.0
        for i in np.arange(len(values))[order]:
            total[i] += weight * mean
            mass[i] += weight * weights
            mean, weights = weight * mean + values[i], weight * weights + 1
    return (total + values) / (mass + 1)


def ticks(low: float, high: float) -> list[float]:
    """Two to six multiples of 1, 2 or 5 times a power of ten within [low, high]."""
    least = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(least))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= least * (1 - 1e-9))
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Values within [10^low, 10^high]: decades, or 1 2 5 of each, or plain ticks where that leaves fewer than three."""
    for factors in ((1,), (1, 2, 5)):
        values = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in factors]
        values = [v for v in values if low <= math.log10(v) <= high]
        if len(values) >= 3:
            return values[:: math.ceil(len(values) / 7)]
    return ticks(10**low, 10**high)


def _thin(values: np.ndarray) -> np.ndarray:
    return values if len(values) <= POINTS else np.array([part.mean() for part in np.array_split(values, POINTS)])


def _span(values: np.ndarray, margin: float) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    extra = margin * (high - low) if high > low else max(abs(low), 1.0) / 2
    return low - extra, high + extra


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and size > 1e3):
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def _rule(y: float, name: str) -> str:
    return f'<path class="{name}" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'


def _text(x: float, y: float, anchor: str, value: float, before: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{before}{_short(value)}</text>'


def _line(x: Sequence[float], y: Sequence[float], name: str) -> str:
    if len(x) == 1:
        return f'<circle class="{name}" r="3" cx="{x[0]:.1f}" cy="{y[0]:.1f}"/>'
    return f'<polyline class="{name}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))}"/>'
