"""A run's results as one self-contained HTML page: curves (inline SVG), videos (embedded mp4), tables, the exact config.

    report = Report("MAGVIT on sprites", "One paragraph a newcomer understands.", world="sprites-small")
    report.tiles([("reconstruction", Number(24.1, (23.8, 24.4), target=23, unit=" dB"), "PSNR, 256 held-out clips")])
    report.section("Training").curves("Loss", {"train/loss": (steps, values)}, log=True, smooth=0.9)
    report.section("Tasks").videos("CG: class-conditional", ["real", "generated"], [{"label": "disc, spin", "clips": [a, b]}])
    report.write("runs/x/report.html")

The page needs no network and no script to be read. The same calls give the same bytes, on one version of PyAV and zlib.
"""

import base64
import binascii
import dataclasses
import html
import json
import math
import os
import pathlib
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from magvid import video

Curve = tuple[Sequence[float], Sequence[float]]  # steps, values
DASH = "–"  # what a missing value looks like
GAP = 4  # pixels between the clips of a video
FILM = 24  # grey level of the gaps, in both colour schemes
POINTS = 400  # a curve longer than this is drawn as the means of so many equal stretches


@dataclasses.dataclass(frozen=True)
class Number:
    """A measured value. None or a non-finite value is shown as a dash.

    interval: the 95 % confidence interval (low, high). target: shown beside the value with whether it is met.
    unit: appended as it is (" dB", " %"). digits: decimals.
    """

    value: float | None
    interval: tuple[float, float] | None = None
    target: float | None = None
    lower_is_better: bool = False
    unit: str = ""
    digits: int = 2

    def html(self) -> str:
        known = self.value is not None and math.isfinite(self.value)
        parts = [f"<b>{self.value:.{self.digits}f}{_escape(self.unit)}</b>" if known else f"<b>{DASH}</b>"]
        if known and self.interval is not None:
            low, high = (f"{v:.{self.digits}f}" for v in self.interval)
            parts.append(f'<span class="ci" title="95 % confidence interval">[{low}, {high}]</span>')
        if self.target is not None:
            sign = "≤" if self.lower_is_better else "≥"
            met = known and (self.value <= self.target if self.lower_is_better else self.value >= self.target)
            state, mark = ("met", "✓") if met else ("missed", "✗") if known else ("open", DASH)
            goal = f"{sign} {self.target:g}{_escape(self.unit)} {mark}"
            parts.append(f'<span class="goal {state}" title="target {state}">{goal}</span>')
        return " ".join(parts)


class Report:
    """Blocks are appended in order and every method returns the report; `section` starts a part named in the navigation.

    title, summary: the head of the page. world: the name of the data set, shown beside every block that holds numbers.
    All text is escaped. Blocks before the first section belong to the head.
    """

    def __init__(self, title: str, summary: str, world: str | None = None):
        self.title, self.summary = title, summary
        self._world = f'<span class="world" title="the world these numbers are from">{_escape(world)}</span>' if world else ""
        self._sections: list[tuple[str, str, list[tuple[str, str]]]] = [("", "", [])]  # title, text, [(kind, html)]

    def section(self, title: str, text: str = "") -> "Report":
        """Starts a section with an introduction."""
        self._sections.append((title, text, []))
        return self

    def tiles(self, items: Sequence[tuple[str, Any, str]]) -> "Report":
        """Key numbers: (name, Number or text, what it means)."""
        tile = '<div class="tile"><dt>{}</dt><dd>{}</dd><dd class="note">{} {}</dd></div>'
        return self._add("tiles", "".join(tile.format(_escape(n), _cell(v), _escape(m), self._world) for n, v, m in items))

    def curves(
        self,
        title: str,
        series: Mapping[str, Curve],
        *,
        log: bool = False,
        smooth: float = 0.0,
        target: float | None = None,
        note: str = "",
    ) -> "Report":
        """One plot of {name: (steps, values)}.

        log: logarithmic values (those <= 0 are left out). smooth: weight in [0, 1) of an exponential moving average
        drawn over the faint raw curve. target: a dashed horizontal line. Non-finite values are left out and counted.
        Raises ValueError where steps and values differ in length.
        """
        kept, dropped = {}, 0
        for name, (steps, values) in series.items():
            x, y = np.asarray(steps, np.float64), np.asarray(values, np.float64)
            if x.shape != y.shape or x.ndim != 1:
                raise ValueError(f"curve {name!r} of {title!r} has steps {x.shape} and values {y.shape}: give two equal lists")
            good = np.isfinite(x) & np.isfinite(y) & ((y > 0) | (not log))
            dropped += int((~good).sum())
            if good.any():
                kept[name] = x[good], y[good]
        if dropped:
            note = f"{note} {dropped} values that are not finite{' or not positive' if log else ''} are left out.".strip()
        legend = "".join(
            f'<li><i class="c{i % 6}"></i>{_escape(name)} <span class="ci">last {y[-1]:.4g}</span></li>'
            for i, (name, (_, y)) in enumerate(kept.items())
        )
        plot = _plot(title, kept, log, smooth, target) if kept else f'<p class="note">{DASH} no values</p>'
        return self._card(title, f'<ul class="legend">{legend}</ul>{plot}' if legend else plot, note)

    def videos(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Mapping[str, Any]],
        *,
        fps: float = 8,
        scale: int = 4,
        note: str = "",
        numbers: Mapping[str, Any] | None = None,
    ) -> "Report":
        """A grid of clips, looping in step because all of them are one video.

        rows: [{"label": str, "clips": [uint8 (t h w 3) or None, one per column]}]; all clips share (h, w), a shorter one
        holds its last frame, None is an empty cell. scale: nearest-neighbour factor, before the codec halves the colour
        resolution. numbers: {name: Number or text} beside the title. Raises ValueError naming the row for other shapes.
        """
        frames = _film(title, columns, rows, scale)
        height, width = frames.shape[1:3]
        labels = [str(row.get("label", "")) for row in rows]
        named = any(labels)
        alt = _escape(f"{title}. Columns: {', '.join(columns)}. Rows: {'; '.join(filter(None, labels)) or len(rows)}.")
        head = "".join(f"<span>{_escape(c)}</span>" for c in columns)
        side = "".join(f"<span>{_escape(label)}</span>" for label in labels)
        gap = f"column-gap:{100 * GAP / width:.3f}%;grid-template-columns:repeat({len(columns)},1fr)"
        body = (
            f'<div class="film{" named" if named else ""}" style="max-width:{2 * width + 96 * named}px">'
            f'<div class="cols" style="{gap}" aria-hidden="true">{head}</div>'
            f'<div class="rows" aria-hidden="true">{side}</div>'
            f'<video autoplay loop muted playsinline preload="auto" width="{width}" height="{height}" aria-label="{alt}" '
            f'title="{_escape(title)}" poster="{_data("image/png", _png(frames[len(frames) // 2]))}" '
            f'src="{_data("video/mp4", video.encode_mp4(frames, fps))}"></video></div>'
        )
        shown = "".join(f"<li>{_escape(k)} {_cell(v)}</li>" for k, v in (numbers or {}).items())
        return self._card(title, f'<ul class="numbers">{shown}<li>{self._world}</li></ul>{body}' if shown else body, note, True)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[Any]], *, note: str = "") -> "Report":
        """Cells are Number, int, float, bool, str or None (a dash). The first cell of a row is its name."""
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"a row of table {title!r} has {len(row)} cells, its header has {len(header)}: {list(row)}")
        head = "".join(f'<th scope="col">{_escape(h)}</th>' for h in header)
        lines = (
            f'<tr><th scope="row">{_cell(row[0])}</th>'
            + "".join(f"<td{_align(cell)}>{_cell(cell)}</td>" for cell in row[1:])
            + "</tr>"
            for row in rows
        )
        caption = f"<caption>{_escape(title)} {self._world}</caption>"
        table = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
        return self._add("wide", f'<div class="scroll">{table}</div>{_note(note)}')

    def bars(self, title: str, values: Mapping[str, float | None], unit: str = " s", note: str = "") -> "Report":
        """Horizontal bars of non-negative numbers, e.g. seconds per stage, with their sum."""
        known = {k: v for k, v in values.items() if v is not None and math.isfinite(v)}
        top, total = max(known.values(), default=0) or 1, sum(known.values())
        rows = "".join(
            f'<div class="bar"><dt>{_escape(k)}</dt><dd><i style="width:{100 * known.get(k, 0) / top:.1f}%"></i></dd>'
            f"<dd>{f'{known[k]:,.1f}{_escape(unit)}' if k in known else DASH}</dd></div>"
            for k in values
        )
        total = f'<div class="bar total"><dt>total</dt><dd></dd><dd>{total:,.1f}{_escape(unit)}</dd></div>'
        return self._card(title, f"<dl>{rows}{total}</dl>", note, wide=True)

    def code(self, title: str, text: str) -> "Report":
        """Preformatted text, e.g. the commands that reproduce the run."""
        return self._add("wide", f"<h3>{_escape(title)}</h3><pre><code>{_escape(text.strip())}</code></pre>")

    def notes(self, items: Sequence[str]) -> "Report":
        """A plain list of sentences."""
        return self._add("wide", f"<ul class=prose>{''.join(f'<li>{_escape(item)}</li>' for item in items)}</ul>")

    def config(self, config: Mapping[str, Any], title: str = "Configuration") -> "Report":
        """The exact configuration as JSON, folded; a ConfigDict and numpy values are understood.

        Raises ValueError naming the value that JSON has no word for.
        """
        config = config.to_dict() if hasattr(config, "to_dict") else config
        text = json.dumps(config, indent=2, ensure_ascii=False, default=_plain)
        size = f"{text.count(chr(10)) + 1} lines of JSON"
        summary = f'<summary>{_escape(title)} <span class="ci">{size}</span></summary>'
        return self._add("wide", f"<details>{summary}<pre><code>{_escape(text)}</code></pre></details>")

    def html(self) -> str:
        """The page."""
        (_, _, head), *sections = self._sections
        links = "".join(f'<a href="#s{i}">{_escape(title)}</a>' for i, (title, _, _) in enumerate(sections, 1))
        body = "".join(
            f'<section id="s{i}"><h2>{_escape(title)}</h2>'
            + (f'<p class="prose">{_escape(text)}</p>' if text else "")
            + f"{_blocks(blocks)}</section>"
            for i, (title, text, blocks) in enumerate(sections, 1)
        )
        moving = any("<video" in block for _, _, blocks in self._sections for _, block in blocks)
        button = '<button id="play" type="button" hidden>Pause videos</button>' if moving else ""
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><link rel="icon" href="data:,">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{_escape(self.title)}</title><style>{_CSS}</style></head><body>"
            f'<header><h1>{_escape(self.title)} {self._world}</h1><p class="lead">{_escape(self.summary)}</p>'
            f'{_blocks(head)}</header><nav aria-label="Sections">{links}{button}</nav><main>{body}</main>'
            f"{f'<script>{_SCRIPT}</script>' if moving else ''}</body></html>\n"
        )

    def write(self, path: str | os.PathLike) -> pathlib.Path:
        """Writes the page, whole or not at all (a temporary file beside it is renamed), and returns its path."""
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            partial.write_text(self.html(), encoding="utf-8", newline="\n")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    def _add(self, kind: str, block: str) -> "Report":
        self._sections[-1][2].append((kind, block))
        return self

    def _card(self, title: str, body: str, note: str, note_first: bool = False, wide: bool = False) -> "Report":
        parts = (_note(note), body) if note_first else (body, _note(note))
        kind = "wide" if wide else "grid"
        return self._add(kind, f'<figure class="card"><figcaption>{_escape(title)}</figcaption>{"".join(parts)}</figure>')


def run_curves(workdir: str | os.PathLike) -> dict[str, Curve]:
    """Reads `metrics.jsonl` of a run folder -> {name: (steps, values)}, names in order of appearance.

    A run that was resumed logs some steps twice: the later line counts, and what the abandoned stretch logged beyond it
    is dropped. A last line cut off by a crash is ignored. Raises ValueError for a missing file and for a broken line.
    """
    path = pathlib.Path(workdir) / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{path} is missing: {workdir} is not the folder of a run that has logged anything")
    lines = path.read_text(encoding="utf-8").split("\n")
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            step = record.pop("step")
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            if number == len(lines):  # no newline behind it: the writer was killed here
                break
            raise ValueError(f'{path} line {number} is not a JSON object with a "step": {line[:60]!r}') from error
        for name, value in record.items():
            if isinstance(value, int | float):
                steps, values = curves.setdefault(name, ([], []))
                while steps and steps[-1] >= step:
                    steps.pop(), values.pop()
                steps.append(step), values.append(value)
    return curves


# Videos ----------------------------------------------------------------------------------------------------------------


def _film(title: str, columns: Sequence[str], rows: Sequence[Mapping], scale: int) -> UInt8[np.ndarray, "t h w 3"]:
    """All clips of a grid as one video, even in height and width (the codec's wish)."""
    clips = [None if clip is None else np.asarray(clip) for row in rows for clip in row["clips"]]
    for row in rows:
        if len(row["clips"]) != len(columns):
            raise ValueError(f"row {row.get('label')!r} of {title!r} has {len(row['clips'])} clips for {len(columns)} columns")
    first = next((clip for clip in clips if clip is not None), None)
    if first is None:
        raise ValueError(f"{title!r} has no clip to show: give at least one row with one clip")
    for i, clip in enumerate(clips):
        good = clip is None or (clip.dtype == np.uint8 and clip.ndim == 4 and len(clip) and clip.shape[1:] == (*first.shape[1:3], 3))
        if not good:
            label = rows[i // len(columns)].get("label")
            raise ValueError(f"row {label!r} of {title!r}: clips are uint8 (t h w 3) of one size, got {clip.dtype} {clip.shape}")
    length, (h, w) = max(len(clip) for clip in clips if clip is not None), (scale * s for s in first.shape[1:3])
    height, width = (n * (size + GAP) - GAP for n, size in ((len(rows), h), (len(columns), w)))
    film = np.full((length, height + height % 2, width + width % 2, 3), FILM, np.uint8)
    for i, clip in enumerate(clips):
        if clip is not None:
            y, x = i // len(columns) * (h + GAP), i % len(columns) * (w + GAP)
            held = clip[np.minimum(np.arange(length), len(clip) - 1)]
            film[:, y : y + h, x : x + w] = held.repeat(scale, 1).repeat(scale, 2)
    return film


def _png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """An RGB picture as PNG (ISO/IEC 15948): what a browser shows before, or instead of, playing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", binascii.crc32(kind + data))

    h, w = image.shape[:2]
    lines = np.concatenate([np.zeros((h, 1), np.uint8), image.reshape(h, -1)], axis=1).tobytes()  # filter 0 per line
    header = struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines, 9)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


# Curves ----------------------------------------------------------------------------------------------------------------


def _plot(title: str, series: dict[str, tuple[np.ndarray, np.ndarray]], log: bool, smooth: float, target: float | None) -> str:
    """SVG of finite, non-empty curves; colours come from the page's style sheet."""
    width, height, left, bottom, top, right = 480, 240, 52, 26, 8, 14
    drawn = {name: (_thin(x), _thin(y), _thin(_smoothed(y, smooth))) for name, (x, y) in series.items()}
    scale = np.log10 if log else lambda v: np.asarray(v, np.float64)
    xs = np.concatenate([x for x, _, _ in drawn.values()])
    extra = [target] if target is not None and (target > 0 or not log) else []
    ys = scale(np.concatenate([y for _, y, _ in drawn.values()] + [extra]))
    (x0, x1), (y0, y1) = _span(xs, 0), _span(ys, 0.05)

    def px(x):
        return left + (np.asarray(x) - x0) / (x1 - x0) * (width - left - right)

    def py(y):
        return height - bottom - (scale(y) - y0) / (y1 - y0) * (height - bottom - top)

    parts = []
    for tick in _log_ticks(y0, y1) if log else _ticks(y0, y1):
        y = f"{py(tick):.1f}"
        parts.append(f'<path class="rule" d="M{left} {y}H{width - right}"/>')
        parts.append(f'<text x="{left - 6}" y="{y}" dy=".32em" text-anchor="end">{_short(tick)}</text>')
    for tick in _ticks(x0, x1):
        parts.append(f'<text x="{px(tick):.1f}" y="{height - 8}" text-anchor="middle">{_short(tick)}</text>')
    for value in extra:
        parts.append(f'<path class="target" d="M{left} {py(value):.1f}H{width - right}"/>')
        parts.append(f'<text x="{width - right}" y="{py(value) - 4:.1f}" text-anchor="end">target {value:g}</text>')
    for i, (x, y, line) in enumerate(drawn.values()):
        for values, faint in ((y, " faint"), (line, ""))[not smooth :]:
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(px(x), py(values), strict=True))
            shape = f'<polyline points="{points}"' if len(x) > 1 else f'<circle r="3" cx="{px(x[0]):.1f}" cy="{py(y[0]):.1f}"'
            parts.append(f'{shape} class="line c{i % 6}{faint}"/>')
    ends = "; ".join(f"{name} from {y[0]:.4g} to {y[-1]:.4g}" for name, (_, y) in series.items())
    alt = _escape(f"{title} over {xs.max():.0f} steps: {ends}.")
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{alt}"><title>{alt}</title>{"".join(parts)}</svg>'


def _smoothed(values: np.ndarray, weight: float) -> np.ndarray:
    """Exponential moving average without the bias towards its start."""
    if not 0 <= weight < 1:
        raise ValueError(f"smooth must lie in [0, 1), got {weight}")
    out, mean, mass = np.empty_like(values), 0.0, 0.0
    for i, value in enumerate(values):
        mean, mass = weight * mean + (1 - weight) * value, weight * mass + (1 - weight)
        out[i] = mean / mass
    return out


def _thin(values: np.ndarray) -> np.ndarray:
    return values if len(values) <= POINTS else np.array([part.mean() for part in np.array_split(values, POINTS)])


def _span(values: np.ndarray, margin: float) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    pad = margin * (high - low) if high > low else max(abs(low), 1) / 2
    return low - pad, high + pad


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers."""
    raw = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Values 10^low .. 10^high: whole decades, with 2 and 5 between them where there are few."""
    for per_decade in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        values = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in per_decade]
        inside = [v for v in values if low <= math.log10(v) <= high]
        if len(inside) >= 3:
            break
    return inside[:: -(-len(inside) // 7) or 1] or [10 ** ((low + high) / 2)]


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / min(size, 10 ** (3 * (len(letter) and {'k': 1, 'M': 2, 'G': 3}[letter]))):g}{letter}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


# Text ------------------------------------------------------------------------------------------------------------------


def _escape(value: Any) -> str:
    return html.escape(str(value), quote=True)


def _note(text: str) -> str:
    return f'<p class="note">{_escape(text)}</p>' if text else ""


def _cell(value: Any) -> str:
    if isinstance(value, Number):
        return value.html()
    if value is None or (isinstance(value, float | np.floating) and not math.isfinite(value)):
        return DASH
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return _escape(value)


def _align(value: Any) -> str:
    numeric = value is None or isinstance(value, Number | int | float | np.number)
    return ' class="num"' if numeric else ""


def _plain(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise ValueError(f"the configuration holds {value!r}, which JSON cannot express: use numbers, text, lists and dicts")


def _blocks(blocks: Sequence[tuple[str, str]]) -> str:
    """Neighbouring cards share a grid."""
    out, previous = [], ""
    for kind, block in blocks:
        if previous == "grid" != kind:
            out.append("</div>")
        if kind == "grid" != previous:
            out.append('<div class="grid">')
        out.append(f'<dl class="tiles">{block}</dl>' if kind == "tiles" else block)
        previous = kind
    return "".join(out) + ("</div>" if previous == "grid" else "")


_CSS = """
:root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--ink:#1b1f24;--soft:#5b6470;--line:#e2e4e8;--rule:#eceef1;
--accent:#2457c5;--good:#0c6b3d;--bad:#a8321f;--c0:#2a6fdb;--c1:#d2620e;--c2:#16896a;--c3:#b8327c;--c4:#7a56c9;--c5:#8a6d1a}
@media (prefers-color-scheme:dark){:root{--bg:#101317;--card:#171b21;--ink:#e6e9ee;--soft:#9aa4b2;--line:#2a3038;
--rule:#232931;--accent:#86acff;--good:#5fcf98;--bad:#ff8f7a;--c0:#6ea3ff;--c1:#ff9d57;--c2:#4fcfa6;--c3:#f07fbb;
--c4:#b39cff;--c5:#dbbd5f}}
*{box-sizing:border-box}html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
header,main,nav{max-width:74rem;margin:0 auto;padding:0 clamp(1rem,3vw,2rem)}
header{padding-top:clamp(1.5rem,5vw,3.5rem)}
h1{font-size:clamp(1.6rem,4.5vw,2.5rem);line-height:1.15;letter-spacing:-.02em;margin:0 0 .8rem}
h2{font-size:1.4rem;letter-spacing:-.01em;margin:3rem 0 .5rem}h3{font-size:1rem;margin:1.4rem 0 .4rem}
.lead{font-size:1.08rem;max-width:48rem;margin:0 0 1.6rem}.prose{max-width:48rem}ul.prose li{margin:.4rem 0}
.note{color:var(--soft);font-size:.87rem;line-height:1.45;margin:.5rem 0}.ci{color:var(--soft);font-weight:400}
.world{display:inline-block;border:1px solid var(--line);border-radius:99px;padding:.1em .7em;color:var(--soft);
font:500 .72rem/1.5 ui-monospace,Menlo,Consolas,monospace;letter-spacing:0;vertical-align:middle;white-space:nowrap}
nav{position:sticky;top:0;z-index:1;display:flex;align-items:center;gap:1.2rem;overflow-x:auto;background:var(--bg);
border-bottom:1px solid var(--line);white-space:nowrap;margin-top:1.5rem}
nav a{color:var(--soft);text-decoration:none;font-size:.9rem;padding:.7rem 0}nav a:hover{color:var(--accent)}
button{margin-left:auto;font:inherit;font-size:.82rem;color:var(--ink);background:var(--card);cursor:pointer;
border:1px solid var(--line);border-radius:.5rem;padding:.25rem .7rem}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}section{scroll-margin-top:3rem}main{padding-bottom:5rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,13rem),1fr));gap:.8rem;margin:0}
.tile,.card{background:var(--card);border:1px solid var(--line);border-radius:.8rem;padding:1rem 1.1rem}
.tile dt{color:var(--soft);font-size:.85rem}.tile dd{margin:0}.tile b{font-size:1.7rem;font-weight:650;
letter-spacing:-.02em;margin-right:.15rem}.tile .note{margin-top:.35rem}
.tile,.num,.numbers,.bar,svg{font-variant-numeric:tabular-nums}
.goal{white-space:nowrap;font-size:.85em;color:var(--soft)}.met{color:var(--good)}.missed{color:var(--bad)}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,28rem),1fr));gap:1rem;margin:1rem 0}
.card{margin:0;min-width:0}section>.card{margin:1rem 0}figcaption{font-weight:600}
.legend,.numbers{list-style:none;display:flex;flex-wrap:wrap;gap:.15rem 1.1rem;margin:.3rem 0 .6rem;padding:0;font-size:.86rem}
.legend i{display:inline-block;width:1.1em;height:3px;border-radius:2px;margin-right:.45em;vertical-align:middle}
svg{display:block;width:100%;height:auto}svg text{fill:var(--soft);font-size:12px}.rule{stroke:var(--rule)}
.target{stroke:var(--soft);stroke-dasharray:5 4}
polyline.line{fill:none;stroke:currentColor;stroke-width:2;stroke-linejoin:round}circle.line{fill:currentColor}
.faint{opacity:.28;stroke-width:1!important}
.c0{color:var(--c0)}.c1{color:var(--c1)}.c2{color:var(--c2)}.c3{color:var(--c3)}.c4{color:var(--c4)}.c5{color:var(--c5)}
.legend i{background:currentColor}
.film{display:grid;gap:.3rem .5rem;margin-top:.6rem;container-type:inline-size}
.film.named{grid-template-columns:clamp(3.4rem,16%,6rem) 1fr}.named .cols,.named video{grid-column:2}
.film:not(.named) .rows{display:none}
.cols{display:grid;text-align:center;font-size:clamp(.58rem,2.5cqi,.8rem);color:var(--soft);align-items:end;line-height:1.2}
.rows{display:flex;flex-direction:column;font-size:clamp(.62rem,2.6cqi,.8rem);line-height:1.25;color:var(--soft)}
.rows span{flex:1 1 0;min-height:0;display:flex;align-items:center;overflow-wrap:anywhere}
video{display:block;width:100%;height:auto;background:#181818;border-radius:.4rem;image-rendering:pixelated}
.scroll{overflow-x:auto;margin:1rem 0 .3rem}table{border-collapse:collapse;width:100%;font-size:.92rem}
caption{text-align:left;font-weight:600;padding:0 0 .5rem}th,td{text-align:left;padding:.45rem .8rem;
border-bottom:1px solid var(--line);vertical-align:baseline}thead th{color:var(--soft);font-weight:500;font-size:.83rem}
tbody th{font-weight:500}td b{font-weight:600}td.num{white-space:nowrap}tbody tr:hover{background:var(--rule)}
.bar{display:grid;grid-template-columns:minmax(6rem,14rem) 1fr 6rem;gap:.8rem;align-items:center;font-size:.9rem;
padding:.18rem 0}.bar dd{margin:0}.bar dd:last-child{text-align:right}.bar i{display:block;height:.6rem;border-radius:.3rem;
background:var(--c0)}.total{border-top:1px solid var(--line);font-weight:600}dl{margin:.5rem 0 0}
pre{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.9rem 1.1rem;overflow-x:auto;
font:.83rem/1.5 ui-monospace,Menlo,Consolas,monospace;margin:.4rem 0}
details{margin:1rem 0}summary{cursor:pointer;font-weight:600}
@media print{nav{display:none}body{background:#fff}.card,.tile,tr{break-inside:avoid}h2,h3{break-after:avoid}
pre{white-space:pre-wrap}details::details-content{content-visibility:visible;height:auto}}
"""

# Only a convenience: pause and play all videos, and start paused for whoever asked their system for less motion.
_SCRIPT = """
{const videos=[...document.querySelectorAll('video')],button=document.getElementById('play');let on=true;
const set=v=>{on=v;videos.forEach(x=>v?x.play():x.pause());button.textContent=v?'Pause videos':'Play videos'};
button.hidden=false;button.onclick=()=>set(!on);
if(matchMedia('(prefers-reduced-motion: reduce)').matches)set(false)}
"""
