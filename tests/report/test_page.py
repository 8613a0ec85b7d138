import json

import numpy as np
import pytest

from src.report.page import Page, PageFigure, PageTable, read_page, write_page


def _page(folder):
    (folder / "plots").mkdir()
    (folder / "plots/curve.png").write_bytes(b"png")
    (folder / "curve.csv").write_text("step\n1\n")
    return Page(
        title="Training",
        paragraphs=["One.", "Two <b>."],
        numbers={"val/l0": np.float32(16.0), "n": 3, "device": "cpu"},
        figures=[PageFigure(folder / "plots/curve.png", "A curve.")],
        tables=[PageTable(folder / "curve.csv", "Its values.", max_rows=5, columns=["step"])],
    )


def test_page_comes_back_with_paths_relative_to_the_run(tmp_path):
    write_page(_page(tmp_path), tmp_path / "page.json")
    assert read_page(tmp_path / "page.json") == Page(
        title="Training",
        paragraphs=("One.", "Two <b>."),
        numbers={"val/l0": 16.0, "n": 3, "device": "cpu"},
        figures=(PageFigure("plots/curve.png", "A curve."),),
        tables=(PageTable("curve.csv", "Its values.", 5, ("step",)),),
    )


def test_page_with_a_missing_figure_is_refused_and_leaves_nothing(tmp_path):
    page = Page("T", figures=[PageFigure(tmp_path / "plots/none.png", "")])
    with pytest.raises(FileNotFoundError, match=r"plots/none\.png.*before the page"):
        write_page(page, tmp_path / "page.json")
    assert list(tmp_path.iterdir()) == []


def test_page_with_a_figure_of_another_run_is_refused(tmp_path):
    (tmp_path / "other.png").write_bytes(b"png")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with pytest.raises(ValueError, match="inside the run directory"):
        write_page(Page("T", figures=[PageFigure(tmp_path / "other.png", "")]), run_dir / "page.json")


def test_missing_page_says_where(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"page\.json"):
        read_page(tmp_path / "page.json")


@pytest.mark.parametrize("text", ["{", "[]", "{}", json.dumps({"schema_version": 99})])
def test_file_that_is_no_page_is_refused(tmp_path, text):
    (tmp_path / "page.json").write_text(text)
    with pytest.raises(ValueError, match=r"Expected a page of schema version 1 in .*page\.json"):
        read_page(tmp_path / "page.json")
