"""A run's results as one self-contained HTML page: curves, videos, tables, the exact config; no network needed.

    report = Report("MAGVIT on sprites", "One paragraph a newcomer understands.", world="sprites-small")
    report.tiles([("reconstruction", Number(24.1, (23.8, 24.4), target=23, unit=" dB"), "PSNR on 256 held-out clips")])
    report.section("Training").curves("Loss", {"train/loss": (steps, values)}, log=True, smooth=0.9)
    report.section("Tasks").videos("Generation", ["real", "generated"], [{"label": "a disc spins", "clips": [a, b]}])
    report.write("report.html")

The page looks as `report.css` says. It holds no date, so that the same calls give the same page; only the bytes of its
videos may differ a little where the encoder does.
"""

import base64
import dataclasses
import html
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from magvid import video
from magvid.curves import Curve, colour, drawable, line_plot

DASH = "–"  # a missing value
MARGIN = 2  # pixels around each clip of a grid
WIDE = 900  # a video of more pixels than this gets the width of the page
FILM = 24  # grey level of those pixels and of empty cells, in light and in dark

BUTTON = '<button id="play" type="button" hidden>Pause videos</button>'
# A convenience only: one button for all videos, which start paused for whoever asked their system for less motion.
SCRIPT = """{const videos=[...document.querySelectorAll('video')],button=document.getElementById('play');let on=true;
const set=v=>{on=v;videos.forEach(x=>v?x.play():x.pause());button.textContent=v?'Pause videos':'Play videos'};
button.hidden=false;button.onclick=()=>set(!on);if(matchMedia('(prefers-reduced-motion: reduce)').matches)set(false)}"""


@dataclasses.dataclass(frozen=True)
class Number:
    """A measured value; None or a non-finite one is shown as a dash.

    interval: 95 % confidence interval (low, high). target: shown beside the value, with whether it is met.
    unit: appended as it is, e.g. " dB". digits: decimals.
    """

    value: float | None
    interval: tuple[float, float] | None = None
    target: float | None = None
    lower_is_better: bool = False
    unit: str = ""
    digits: int = 2

    def html(self) -> str:
        known, unit = _known(self.value), _escape(self.unit)
        text = f"<b>{self.value:.{self.digits}f}{unit}</b>" if known else f"<b>{DASH}</b>"
        if known and self.interval is not None:
            low, high = (f"{v:.{self.digits}f}" if _known(v) else DASH for v in self.interval)
            text += f' <span class="ci" title="95 % confidence interval">[{low}, {high}]</span>'
        if self.target is not None:
            met = known and (self.value <= self.target if self.lower_is_better else self.value >= self.target)
            state, mark = ("met", "✓") if met else ("missed", "✗") if known else ("open", "")
            sign = "≤" if self.lower_is_better else "≥"
            text += f' <span class="goal {state}" title="target {state}">{sign} {self.target:g}{unit} {mark}</span>'
        return text


class Report:
    """Blocks are appended in order, each call returns the report, and all text is escaped.

    title, summary: the head of the page, which also takes the blocks before the first `section`. world: the name of the
    data the numbers come from, shown beside every block that holds numbers.
    """

    def __init__(self, title: str, summary: str, world: str | None = None):
        self.title, self.summary = title, summary
        self._world = f' <span class="world" title="measured on">{_escape(world)}</span>' if world else ""
        self._sections: list[tuple[str, str, list[tuple[str, str]]]] = [("", "", [])]  # title, text, [(layout, html)]

    def section(self, title: str, text: str = "") -> "Report":
        """Starts a part of the page, named in the navigation."""
        self._sections.append((title, text, []))
        return self

    def tiles(self, items: Sequence[tuple[str, Any, str]]) -> "Report":
        """Key numbers: (name, Number or text, what it means)."""
        tile = '<div class="tile"><dt>{}</dt><dd>{}</dd><dd class="note">{}</dd></div>'
        cells = ""
        for name, value, text in items:
            shown = _cell(value) if isinstance(value, Number) else f"<b>{_cell(value)}</b>"
            cells += tile.format(_escape(name), shown, _escape(text) + self._world)
        return self._add("plain", f'<dl class="tiles">{cells}</dl>')

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
        """One plot of {name: (steps, values)}; see `curves.line_plot` for log, smooth and target.

        What cannot be drawn (not finite, or <= 0 where `log`) is left out, and the page says how much that was.
        Raises ValueError where steps and values differ in length.
        """
        kept, dropped = drawable(series, log)
        if dropped:
            note += f" Values left out because they are not finite{' or not positive' if log else ''}: {dropped}."
        key = '<li class="{}"><i></i><span>{}</span> <span class="ci">last {:.4g}</span></li>'
        keys = (key.format(colour(i), _escape(name), y[-1]) for i, (name, (_, y)) in enumerate(kept.items()))
        plot = line_plot(title, kept, log, smooth, target) if kept else f"<p>{DASH} no values</p>"
        return self._figure(title, f'<ul class="inline">{"".join(keys)}</ul>{plot}', after=note)

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
        """A grid of looping clips, in step because together they are one video.

        rows: {"label": str, "clips": [uint8 (t h w 3) or None per column]}. All clips have one (h, w); a shorter one
        holds its last frame; None leaves its cell empty. scale: nearest-neighbour enlargement, so that the codec's
        half-resolution colour does not blur small clips. numbers: {name: Number or text}, shown under the title.
        Raises ValueError naming the row.
        """
        frames, labels = _film(title, len(columns), rows, scale), [str(row.get("label", "")) for row in rows]
        height, width = frames.shape[1:3]
        source = base64.b64encode(video.encode_mp4(frames, fps)).decode("ascii")
        alt = _escape(f"{title}. Columns: {', '.join(columns)}. Rows: {'; '.join(filter(None, labels)) or len(rows)}.")
        head, side = ("".join(f"<span>{_escape(text)}</span>" for text in texts) for texts in (columns, labels))
        shown = "".join(f"<li>{_escape(name)} {_cell(value)}</li>" for name, value in (numbers or {}).items())
        body = (
            (f'<ul class="inline">{shown}<li>{self._world}</li></ul>' if shown else "")
            + f'<div class="film{" named" if any(labels) else ""}" style="max-width:{2 * width}px">'
            + f'<div class="columns" aria-hidden="true">{head}</div>'
            + f'<div class="rows" aria-hidden="true">{side}</div>'
            + f'<video autoplay loop muted playsinline width="{width}" height="{height}" aria-label="{alt}" '
            + f'src="data:video/mp4;base64,{source}"></video></div>'
        )
        return self._figure(title, body, before=note, wide=width > WIDE)

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[Any]], *, note: str = "") -> "Report":
        """Cells: Number, int, float, str or None; the first in a row names it. ValueError for a row of wrong length."""
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"table {title!r} has {len(header)} headings, a row {len(row)} cells: {list(row)}")
        head = "".join(f'<th scope="col">{_escape(text)}</th>' for text in header)
        lines = "".join(
            f'<tr><th scope="row">{_cell(name)}</th>' + "".join(f"<td>{_cell(v)}</td>" for v in values) + "</tr>"
            for name, *values in rows
        )
        caption = f"<caption>{_escape(title)}{self._world}</caption>"
        table = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"
        return self._add("plain", f'<div class="scroll" tabindex="0">{table}</div>{_note(note)}')

    def bars(self, title: str, values: Mapping[str, float | None], unit: str = " s", note: str = "") -> "Report":
        """Bars of numbers >= 0 with their sum, e.g. seconds per stage."""
        known = {name: value for name, value in values.items() if _known(value)}
        full, total = max([*known.values(), 0]) or 1, sum(known.values())
        row = '<tr><th scope="row">{}</th><td class="bar"><i style="width:{:.1f}%"></i></td><td>{}</td></tr>'
        text = f"<caption>{_escape(title)}</caption>"
        for name, value in [*((name, known.get(name)) for name in values), ("total", total)]:
            share = 0 if value is None or name == "total" else 100 * value / full
            text += row.format(_escape(name), share, DASH if value is None else f"{value:,.1f}{_escape(unit)}")
        return self._add("plain", f'<table class="narrow">{text}</table>{_note(note)}')

    def facts(self, title: str, values: Mapping[str, Any]) -> "Report":
        """Names and values that are no measurement, e.g. versions and the machine."""
        rows = "".join(f'<tr><th scope="row">{_escape(k)}</th><td>{_cell(v)}</td></tr>' for k, v in values.items())
        return self._add("plain", f'<table class="narrow"><caption>{_escape(title)}</caption>{rows}</table>')

    def code(self, title: str, text: str) -> "Report":
        """Preformatted text, e.g. the commands that reproduce the run."""
        return self._add("plain", f"<h3>{_escape(title)}</h3>{_code(text.strip())}")

    def notes(self, items: Sequence[str]) -> "Report":
        """A list of sentences."""
        return self._add("plain", f'<ul class="prose">{"".join(f"<li>{_escape(item)}</li>" for item in items)}</ul>')

    def config(self, config: Mapping[str, Any], title: str = "Configuration") -> "Report":
        """A configuration as folded JSON: also ConfigDict, paths and numpy values; ValueError naming anything else."""
        text = json.dumps(_plain(config), indent=2, ensure_ascii=False, default=_plain)
        lines = f'<span class="ci">{len(text.splitlines())} lines of JSON</span>'
        return self._add("plain", f"<details><summary>{_escape(title)} {lines}</summary>{_code(text)}</details>")

    def html(self) -> str:
        """The whole page."""
        style = pathlib.Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
        (_, _, head), *sections = self._sections
        links, body = "", ""
        for i, (title, text, blocks) in enumerate(sections, 1):
            links += f'<a href="#s{i}">{_escape(title)}</a>'
            intro = f'<p class="prose">{_escape(text)}</p>' if text else ""
            body += f'<section id="s{i}"><h2>{_escape(title)}</h2>{intro}{_layout(blocks)}</section>\n'
        moving = any("<video" in block for _, _, blocks in self._sections for _, block in blocks)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><link rel="icon" href="data:,">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{_escape(self.title)}</title>\n<style>{style}</style></head>\n<body>"
            f"<header><h1>{_escape(self.title)}{self._world}</h1>"
            f'<p class="lead">{_escape(self.summary)}</p>{_layout(head)}</header>\n'
            f'<nav aria-label="Sections">{links}{BUTTON * moving}</nav>\n'
            f"<main>{body}</main>{f'<script>{SCRIPT}</script>' * moving}</body></html>\n"
        )

    def write(self, path: str | os.PathLike) -> pathlib.Path:
        """Writes the page, whole or not at all (a temporary file beside it is renamed), and returns its path."""
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            partial.write_text(self.html(), encoding="utf-8")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    def _add(self, layout: str, block: str) -> "Report":
        self._sections[-1][2].append((layout, block))
        return self

    def _figure(self, title: str, body: str, before: str = "", after: str = "", wide: bool = False) -> "Report":
        content = f"<figcaption>{_escape(title)}</figcaption>{_note(before)}{body}{_note(after)}"
        return self._add("card", f'<figure class="card{" wide" if wide else ""}">{content}</figure>')


def _film(title: str, columns: int, rows: Sequence[Mapping[str, Any]], scale: int) -> UInt8[np.ndarray, "t h w 3"]:
    """All clips of a grid in one video."""
    found = [(row, clip) for row in rows for clip in row["clips"] if clip is not None]
    if not found:
        raise ValueError(f"{title!r} has no clip to show: give at least one row with one clip")
    size, length = np.shape(found[0][1])[1:3], max(len(clip) for _, clip in found)
    for row, clip in found:
        if clip.dtype != np.uint8 or clip.ndim != 4 or not len(clip) or clip.shape[1:] != (*size, 3):
            got = f"{clip.dtype} {clip.shape}"
            raise ValueError(f"{title!r}, row {row.get('label')!r}: clips are uint8 (t h w 3) of one size, got {got}")
    cells = []
    for row in rows:
        if len(row["clips"]) != columns:
            raise ValueError(f"{title!r}, row {row.get('label')!r}: {len(row['clips'])} clips for {columns} columns")
        for clip in row["clips"]:
            clip = np.full((1, *size, 3), FILM, np.uint8) if clip is None else clip
            held = np.concatenate([clip, clip[-1:].repeat(length - len(clip), axis=0)])
            edge = ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0))
            cells.append(np.pad(video.upscale(held, scale), edge, constant_values=FILM))
    return video.grid(np.stack(cells), columns, gap=0)


def _layout(blocks: Sequence[tuple[str, str]]) -> str:
    """Cards that follow each other share a grid."""
    out, previous = [], "plain"
    for layout, block in [*blocks, ("plain", "")]:
        if layout != previous:
            out.append('<div class="cards">' if layout == "card" else "</div>")
        out.append(block)
        previous = layout
    return "".join(out)


def _escape(value: Any) -> str:
    return html.escape(str(value), quote=True)


def _code(text: str) -> str:
    return f'<pre tabindex="0"><code>{_escape(text)}</code></pre>'


def _note(text: str) -> str:
    return f'<p class="note">{_escape(text.strip())}</p>' if text else ""


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _cell(value: Any) -> str:
    if isinstance(value, Number):
        return value.html()
    if value is None:
        return DASH
    if isinstance(value, float | np.floating):
        return f"{value:.4g}" if math.isfinite(value) else DASH
    return _escape(value)


def _plain(value: Any) -> Any:
    for kind, convert in ((os.PathLike, os.fspath), (np.ndarray | np.generic, lambda v: v.tolist()), (Mapping, dict)):
        if isinstance(value, kind):
            return convert(value)
    if hasattr(value, "to_dict"):  # ml_collections.ConfigDict
        return value.to_dict()
    raise ValueError(f"JSON cannot express {value!r} of the configuration: use numbers, text, lists and dicts")
