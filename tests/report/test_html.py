import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from src.report.headline import Bar, Chart, Headline
from src.report.html import Report, RunPage, format_number, inline_image, read_table, render_report
from src.report.page import Page, PageFigure, PageTable

MANIFEST = {
    "seed": 0,
    "started": "2025-01-01T10:00:00+00:00",
    "ended": "2025-01-01T10:01:30+00:00",
    "git": {"commit": "0123456789abcdef", "dirty": True},
}
NOTHING = Headline([], [], None)


def _png(path, width=40, height=20, noise=False):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8) if noise else np.zeros((height, width, 3), "u1")
    Image.fromarray(pixels).save(path)
    return path


def _run(folder, task="train_sae", fold: int | None = 0, order=1, **page):
    folder.mkdir(parents=True, exist_ok=True)
    return RunPage(task, fold, folder, Page(task.title(), **page), MANIFEST, order)


class _Balance(HTMLParser):
    """Fails when tags are not closed in order."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_report_holds_everything_and_asks_for_nothing(tmp_path):
    (tmp_path / "table.csv").write_text("item_id,score\n007,0.5\n")
    page = _run(
        tmp_path,
        paragraphs=["Trained <quickly> & well."],
        numbers={"val/explained_variance": 0.81239, "n_steps": 12000},
        figures=[PageFigure(_png(tmp_path / "curve.png").name, "A curve.")],
        tables=[PageTable("table.csv", "Scores.")],
    )
    chart = Chart("Right place?", "AUROC.", [Bar("Best neuron", "#123456", 0.9, 0.8, 0.95)])
    figure = PageFigure(tmp_path / "curve.png", "Map.")
    text = render_report(
        Report("demo", [("data", "slides")], Headline(["It works."], [chart], figure), [page], warnings=["Random."])
    )
    parser = _Balance()
    parser.feed(text)
    assert parser.open == []
    assert "Trained &lt;quickly&gt; &amp; well." in text
    for shown in ("0.8124", "12,000", "<td>007</td>", "It works.", "Random.", "0123456789", "90 s", "Best neuron"):
        assert shown in text
    assert text.count("data:image/png;base64,") == 2
    assert not re.search(r"(src|href)=\"(?!data:|#)|url\(|<script|@import", text)


def test_sections_follow_the_pages_order_and_folds_fold(tmp_path):
    pages = [
        _run(tmp_path / "b", "encode", 0, order=2),
        _run(tmp_path / "a1", "train_sae", 1, order=1, paragraphs=["of one"]),
        _run(tmp_path / "a0", "train_sae", 0, order=1, paragraphs=["of zero"]),
        _run(tmp_path / "t", "tile", None, order=0),
    ]
    text = render_report(Report("demo", [], NOTHING, pages))
    anchors = re.findall(r'<section id="(.*?)"', text)
    assert anchors == ["headline", "task-tile", "task-train_sae", "task-encode", "provenance"]
    assert text.index("of zero") < text.index("of one")
    assert re.findall(r"<details( open)?>\s*<summary>Fold (\d)", text) == [(" open", "0"), ("", "1")]
    contents = re.findall(r'<li><a href="#(.*?)">', text)
    assert contents == anchors


def test_missing_parts_are_named(tmp_path):
    text = render_report(Report("demo", [], NOTHING, [], missing=[("localize, fold 0", "There are no outlines.")]))
    assert 'href="#missing"' in text
    assert "localize, fold 0" in text
    assert "There are no outlines." in text
    assert "No neurons have been ranked yet" in text


def test_large_images_become_smaller_and_keep_their_shown_size(tmp_path):
    picture = inline_image(_png(tmp_path / "a.png", 1000, 500, noise=True), max_width=400)
    assert picture.uri.startswith("data:image/webp;base64,")
    with Image.open(io.BytesIO(base64.b64decode(picture.uri.split(",")[1]))) as image:
        assert image.size == (400, 200)
    assert (picture.width, picture.height) == (640, 320)


def test_small_images_stay_as_they_are(tmp_path):
    path = _png(tmp_path / "a.png")
    uri = inline_image(path, max_width=10).uri
    assert base64.b64decode(uri.removeprefix("data:image/png;base64,")) == path.read_bytes()


def test_figure_that_is_gone_is_an_error_that_names_it(tmp_path):
    page = _run(tmp_path, figures=[PageFigure("plots/gone.png", "Gone.")])
    with pytest.raises(FileNotFoundError, match=r"plots/gone\.png, which a page of the report shows, found none"):
        render_report(Report("demo", [], NOTHING, [page]))


def test_table_shows_the_first_rows_rounded_and_ids_as_written(tmp_path):
    (tmp_path / "t.csv").write_text(
        "case_id,auroc,p_value,n,note\n0010,0.98765,1.234e-12,3,a\n2e5,nan,0.00123,4,\n3,1.0,0.5,5,c\n"
    )
    shown = read_table(tmp_path, PageTable("t.csv", "", max_rows=2))
    assert [name for name, is_numeric in shown["header"] if is_numeric] == ["auroc", "p_value", "n"]
    cells = [[cell for cell, _ in row] for row in shown["rows"]]
    assert cells == [["0010", "0.988", "1.2e-12", "3", "a"], ["2e5", "–", "0.0012", "4", ""]]
    assert shown["n_rows"] == 3


def test_table_without_rows_to_show_is_only_named(tmp_path):
    (tmp_path / "all.csv").write_text("a\n1\n2\n")
    page = _run(tmp_path, tables=[PageTable("all.csv", "Everything.", max_rows=0)])
    text = render_report(Report("demo", [], NOTHING, [page]))
    section = text[text.index('id="task-train_sae"') : text.index('id="provenance"')]
    assert "<table>" not in section
    assert "2 rows." in section
    assert "all.csv" in section


def test_table_shows_the_columns_asked_for(tmp_path):
    (tmp_path / "t.csv").write_text("a,b,c\n1,2,3\n")
    shown = read_table(tmp_path, PageTable("t.csv", "", columns=["c", "a"]))
    assert shown["rows"] == [[("3", True), ("1", True)]]
    with pytest.raises(ValueError, match=r"Expected the columns \['x'\] in .*t\.csv"):
        read_table(tmp_path, PageTable("t.csv", "", columns=["x"]))


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234567, "1,234,567"), (3.0, "3"), (0.812345, "0.8123"), (1e-12, "1e-12"), (float("nan"), "–"), ("cpu", "cpu")],
)
def test_numbers_are_short(value, text):
    assert format_number(value) == text
