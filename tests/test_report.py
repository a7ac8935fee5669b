"""The report: what is shown is what was given, nothing is loaded from elsewhere, and no text can become markup."""

import base64
import html
import html.parser
import io
import json
import pathlib
import re

import av
import ml_collections
import numpy as np
import pytest

from magvid import video
from magvid.report import DASH, FILM, MARGIN, Number, Report

EVIL = "<script>alert('\"&')</script>"
VOID = {"meta", "link", "br"}


class Page(html.parser.HTMLParser):
    """Checks that tags are balanced and collects every address the page refers to."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.addresses, self.ids, self.tags = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.open += [tag] * (tag not in VOID)
        for name, value in attributes:
            self.addresses += [value] * (name in ("src", "href", "poster", "data"))
            self.ids += [value] * (name == "id")

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def flat(*colour: int, frames: int = 3, size: int = 8) -> np.ndarray:
    return np.full((frames, size, size, 3), colour, np.uint8)


def play(page: str) -> np.ndarray:
    """The frames of the first embedded video."""
    source = re.search(r'src="data:video/mp4;base64,([^"]+)"', page)[1]
    with av.open(io.BytesIO(base64.b64decode(source))) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def full(text: str = "text") -> Report:
    """Every kind of block, with `text` wherever text goes."""
    report = Report(text, text, world=text)
    report.tiles([(text, Number(1.0, (0.5, 1.5), 2.0, unit=text), text), (text, text, text)])
    report.section(text, text).curves(text, {text: ([1, 2], [3.0, 4.0])}, smooth=0.5, target=3, note=text)
    rows = [{"label": text, "clips": [flat(200, 0, 0), None]}]
    report.videos(text, [text, text], rows, note=text, numbers={text: Number(1.0), "plain": text})
    report.section(text).table(text, [text, text], [[text, Number(None)], [text, text]], note=text)
    report.bars(text, {text: 1.0}, unit=text, note=text).facts(text, {text: text})
    return report.code(text, text).config({text: [text]}, title=text).notes([text])


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (Number(24.31, unit=" dB", digits=1), "24.3 dB"),
        (Number(0.714, (0.68, 0.741)), "0.71 [0.68, 0.74]"),
        (Number(0.71, target=0.6), "0.71 ≥ 0.6 ✓"),
        (Number(0.6, target=0.6), "0.60 ≥ 0.6 ✓"),
        (Number(0.59, target=0.6), "0.59 ≥ 0.6 ✗"),
        (Number(3.0, target=5, lower_is_better=True, digits=0), "3 ≤ 5 ✓"),
        (Number(7.0, target=5, lower_is_better=True, digits=0), "7 ≤ 5 ✗"),
        (Number(None), DASH),
        (Number(float("nan"), (0, 1), target=0.6), f"{DASH} ≥ 0.6"),
        (Number(1.0, (float("nan"), 2.0)), f"1.00 [{DASH}, 2.00]"),
    ],
)
def test_number(number, expected):
    assert re.sub("<[^>]+>", "", number.html()).strip() == expected


def test_the_page_is_balanced_and_needs_nothing_from_elsewhere():
    page = Page(full().html())
    assert all(a.startswith(("data:", "#")) for a in page.addresses)
    assert not re.search(r"https?://|@import|url\(", full().html())
    assert [a[1:] for a in page.addresses if a.startswith("#")] == ["s1", "s2"]
    assert {"s1", "s2"} <= set(page.ids) and len(set(page.ids)) == len(page.ids)


def test_no_text_becomes_markup():
    plain, evil = Page(full().html()), full(EVIL).html()
    assert "alert(" in evil and EVIL not in evil
    assert Page(evil).tags == plain.tags


def test_without_videos_there_is_no_script():
    assert "script" not in Page(Report("t", "s").section("a").notes(["b"]).html()).tags


def test_world_stands_beside_every_block_of_numbers():
    report = Report("t", "s", world="tiny-world")

    def shown():
        return report.html().count(">tiny-world<")

    assert shown() == 1  # the head
    report.tiles([("a", Number(1.0), ""), ("b", Number(2.0), "")])
    assert shown() == 3
    report.table("x", ["a"], [[1]])
    assert shown() == 4
    report.videos("x", ["a"], [{"label": "", "clips": [flat(0, 0, 0)]}], numbers={"n": 1.0})
    assert shown() == 5
    assert "world\">" not in Report("t", "s").table("x", ["a"], [[1]]).html()


def test_videos_lie_in_their_cells_and_play_together():
    red, blue, moving = flat(220, 20, 20), flat(20, 20, 220), flat(0, 0, 0, frames=2)
    moving[1] = 200
    rows = [{"label": "one", "clips": [red, blue, None]}, {"label": "two", "clips": [moving, red, red]}]
    page = Report("t", "s").videos("title", ["a", "b", "c"], rows, fps=8, scale=3).html()
    frames, cell = play(page), 3 * 8 + 2 * MARGIN
    assert frames.shape == (3, 2 * cell, 3 * cell, 3)
    centre = frames[:, cell // 2 :: cell, cell // 2 :: cell].astype(int)
    expected = {(0, 0): (220, 20, 20), (0, 1): (20, 20, 220), (0, 2): (FILM,) * 3, (1, 2): (220, 20, 20)}
    for (row, column), colour in expected.items():
        assert np.abs(centre[:, row, column] - colour).max() <= 12, (row, column)
    assert np.abs(centre[:, 1, 0] - np.array([0, 200, 200])[:, None]).max() <= 12  # it holds its last frame
    assert 'aria-label="title. Columns: a, b, c. Rows: one; two."' in page
    assert "autoplay loop muted playsinline" in page


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ([flat(0, 0, 0)], "row 'r': 1 clips for 2 columns"),
        ([None, None], "has no clip to show"),
        ([flat(0, 0, 0), flat(0, 0, 0, size=9)], r"row 'r': clips are uint8 .* of one size, got uint8 \(3, 9, 9, 3\)"),
        ([flat(0, 0, 0), np.zeros((3, 8, 8, 3))], "got float64"),
        ([np.zeros((8, 8), np.uint8), None], r"got uint8 \(8, 8\)"),
        ([flat(0, 0, 0), flat(0, 0, 0, frames=0)], "got uint8"),
    ],
)
def test_wrong_clips_are_named(clips, message):
    with pytest.raises(ValueError, match=message):
        Report("t", "s").videos("v", ["a", "b"], [{"label": "r", "clips": clips}])


def test_curves_leave_out_what_cannot_be_drawn_and_say_so():
    series = {"a": ([1, 2, 3, 4], [1.0, float("nan"), -1.0, 2.0]), "empty": ([], [])}
    page = Report("t", "s").curves("c", series, log=True).html()
    assert "Values left out because they are not finite or not positive: 2." in page
    assert "a from 1 to 2" in page and "last 2<" in page and "empty" not in page
    assert "no values" in Report("t", "s").curves("c", {"a": ([1], [float("inf")])}).html()
    with pytest.raises(ValueError, match=r"curve 'a' needs as many steps as values.*\(2,\), \(1,\)"):
        Report("t", "s").curves("c", {"a": ([1, 2], [1.0])})


def test_table_cells():
    rows = [["row", None, float("nan"), 0.123456], [1, 2, True, "z"]]
    page = Report("t", "s").table("x", ["n", "a", "b", "c"], rows).html()
    cells = re.findall(r"<td>(.*?)</td>", page)
    assert cells == [DASH, DASH, "0.1235", "2", "True", "z"]
    with pytest.raises(ValueError, match="table 'x' has 2 headings, a row 1 cells"):
        Report("t", "s").table("x", ["a", "b"], [["only"]])


def test_bars_are_in_proportion_and_summed():
    page = Report("t", "s").bars("time", {"a": 1500.0, "b": 375.0, "c": None}).html()
    assert re.findall(r"width:([\d.]+)%", page.split("<body>")[1]) == ["100.0", "25.0", "0.0", "0.0"]
    assert re.findall(r"<td>([^<]*)</td></tr>", page) == ["1,500.0 s", "375.0 s", DASH, "1,875.0 s"]
    assert "0.0 s" in Report("t", "s").bars("time", {}).html()


def test_config_comes_back_from_the_page():
    config = ml_collections.ConfigDict({"lr": np.float32(0.5), "a": {"b": (1, 2), "c": None}, "s": "<é>"})
    config.path, config.array = pathlib.Path("x/y"), np.arange(2)
    page = Report("t", "s").config(config).html()
    back = json.loads(html.unescape(re.search(r"<code>(.*?)</code>", page, re.DOTALL)[1]))
    assert back == {"lr": 0.5, "a": {"b": [1, 2], "c": None}, "s": "<é>", "path": "x/y", "array": [0, 1]}
    with pytest.raises(ValueError, match="JSON cannot express <function"):
        Report("t", "s").config({"f": test_table_cells})


def test_the_same_calls_give_the_same_page(monkeypatch):
    monkeypatch.setattr(video, "encode_mp4", lambda frames, fps: frames.tobytes())  # encoders promise no exact bytes
    assert full().html() == full().html()


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    first = full().write(tmp_path / "new" / "report.html")
    content = first.read_bytes()
    assert [p.name for p in first.parent.iterdir()] == ["report.html"]

    def full_disk(self, *_, **__):
        with open(self, "w") as file:
            file.write("<!doc")
        raise OSError("no space left on device")

    monkeypatch.setattr(pathlib.Path, "write_text", full_disk)
    with pytest.raises(OSError, match="no space"):
        full("other").write(first)
    assert first.read_bytes() == content
    assert [p.name for p in first.parent.iterdir()] == ["report.html"]
