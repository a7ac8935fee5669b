"""A resumed run reads as one, ticks are round, smoothing has a known impulse response, points lie where they belong."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from magvid import curves

RIGHT = curves.WIDTH - curves.RIGHT


def lines(svg: str) -> dict[str, list[tuple[float, float]]]:
    """{class: points} of the polylines of well-formed SVG."""
    found = ElementTree.fromstring(svg).iter("polyline")
    return {e.get("class"): [tuple(map(float, p.split(","))) for p in e.get("points").split()] for e in found}


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (17, 24, [18, 20, 22, 24]), (-3, 3, [-2, 0, 2])],
)
def test_ticks_are_round_and_inside(low, high, expected):
    assert curves.ticks(low, high) == pytest.approx(expected)


def test_log_ticks():
    assert curves.log_ticks(-2, 1) == pytest.approx([0.01, 0.1, 1, 10])
    assert curves.log_ticks(-0.01, 1.01) == pytest.approx([1, 2, 5, 10])
    assert curves.log_ticks(np.log10(2.1), np.log10(4.9)) == pytest.approx([3, 4])
    assert 3 <= len(curves.log_ticks(-20, 20)) <= 7


def test_smoothing_keeps_constants_and_spreads_an_impulse():
    np.testing.assert_allclose(curves.smoothed(np.full(9, 3.0), 0.8), 3.0)
    impulse = np.eye(5)[1]
    distance = np.abs(np.arange(5)[:, None] - np.arange(5))
    kernel = 0.5**distance / (0.5**distance).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(curves.smoothed(impulse, 0.5), kernel @ impulse)
    np.testing.assert_array_equal(curves.smoothed(impulse, 0.0), impulse)
    with pytest.raises(ValueError, match=r"\[0, 1\), got 1"):
        curves.smoothed(impulse, 1)


def test_points_span_the_axes():
    svg = curves.line_plot("p", {"a": (np.array([0.0, 5, 10]), np.array([0.0, 5, 10]))})
    (x0, y0), (x1, y1), (x2, y2) = lines(svg)["c0"]
    assert (x0, x1, x2) == (curves.LEFT, (curves.LEFT + RIGHT) / 2, RIGHT)
    inner = curves.HEIGHT - curves.TOP - curves.BOTTOM  # values are given 5 % of room above and below
    assert y0 == pytest.approx(curves.HEIGHT - curves.BOTTOM - inner * 0.05 / 1.1, abs=0.06)
    assert y2 == pytest.approx(curves.TOP + inner * 0.05 / 1.1, abs=0.06)
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.06)
    assert "a from 0 to 10" in svg


def test_log_scale_spaces_decades_evenly():
    svg = curves.line_plot("p", {"a": (np.arange(3.0), np.array([1.0, 10, 100]))}, log=True, target=10)
    (_, y0), (_, y1), (_, y2) = lines(svg)["c0"]
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.11)
    assert float(re.search(r'class="target" d="M\d+ ([\d.]+)H', svg)[1]) == y1
    assert 'class="target"' not in curves.line_plot("p", {"a": (np.arange(2.0), np.ones(2))}, log=True, target=0)


def test_smoothing_draws_the_raw_curve_too_and_long_curves_are_thinned():
    x = np.arange(5000.0)
    found = lines(curves.line_plot("p", {"a": (x, x % 7), "b": (x, x % 5)}, smooth=0.9))
    assert list(found) == ["c0 faint", "c0", "c1 faint", "c1"]
    assert all(len(points) == curves.POINTS for points in found.values())


def test_a_seventh_curve_is_told_from_the_first():
    svg = curves.line_plot("p", {str(i): (np.arange(2.0), np.arange(2.0)) for i in range(10)})
    assert list(lines(svg)) == [*(f"c{i}" for i in range(6)), *(f"c{i} again" for i in range(4))]


def test_one_point_and_a_flat_curve_are_drawn():
    one = ElementTree.fromstring(curves.line_plot("p", {"a": (np.array([3.0]), np.array([0.0]))}))
    assert [e.get("cx") for e in one.iter("circle")] == [f"{(curves.LEFT + RIGHT) / 2:.1f}"]
    assert len({y for _, y in lines(curves.line_plot("p", {"a": (np.arange(4.0), np.full(4, -2.0))}))["c0"]}) == 1


def test_numbers_are_short():
    svg = curves.line_plot("p", {"a": (np.array([0.0, 2e5]), np.array([0.0, 3e6]))})
    shown = [e.text for e in ElementTree.fromstring(svg).iter("text")]
    assert {"step", "50k", "200k", "1M", "3M"} <= set(shown)


def test_names_cannot_break_the_markup():
    ElementTree.fromstring(curves.line_plot('<&"', {"</svg>": (np.arange(2.0), np.arange(2.0))}))


def test_read_curves_follow_a_resumed_run(tmp_path):
    logged = [{"step": 1, "loss": 4.0}, {"step": 2, "loss": 3.0, "psnr": 20}, {"step": 3, "loss": 2.5}]
    logged.append({"step": 2, "loss": 2.0})  # resumed from step 1
    lines = [json.dumps(line) for line in logged] + ["", '{"step": 9, "l{"step": 3}']
    lines += ['{"step": 3, "loss": NaN, "name": "x"}', '{"step": 4, "lo']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    read = curves.read_curves(tmp_path)
    assert list(read) == ["loss", "psnr"]
    assert read["loss"][0] == [1, 2, 3] and read["loss"][1][:2] == [4.0, 2.0] and np.isnan(read["loss"][1][2])
    assert read["psnr"] == ([2], [20])


@pytest.mark.parametrize("line", ['{"loss": 1}', '{"step": null}', "[1]", "3"])
def test_read_curves_name_a_foreign_line(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "loss": 1.0}}\n{line}\n{{"step": 2, "loss": 1.0}}\n')
    with pytest.raises(ValueError, match="line 2, is not a JSON object"):
        curves.read_curves(tmp_path)


def test_read_curves_need_a_run(tmp_path):
    with pytest.raises(ValueError, match=r"metrics\.jsonl is missing"):
        curves.read_curves(tmp_path)
