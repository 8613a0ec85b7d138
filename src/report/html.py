"""One self-contained HTML file from the pages of many runs: images inside, no network, no script."""

import base64
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from PIL import Image

from src.analysis.figure_style import FIGURE_DPI
from src.report.headline import Headline
from src.report.page import Page, PageTable

_FOLDER = Path(__file__).resolve().parent
# Images larger than this are stored again as WebP, which every browser since 2020 reads.
_LARGE_BYTES = 150_000
_WEBP_QUALITY = 88
# CSS defines an inch as 96 pixels: letters come out at the size that they were drawn with.
_CSS_DPI = 96


@dataclass(frozen=True)
class RunPage:
    """A finished run and its page; `fold` is None for a run that is not of one fold; pages are shown by `order`."""

    task: str
    fold: int | str | None
    run_dir: Path
    page: Page
    manifest: Mapping[str, Any]
    order: int = 0


@dataclass(frozen=True)
class Report:
    """What the HTML file tells.

    Attributes:
        title: the name of the experiment.
        facts: what was analysed with what, as pairs of a word and its value.
        headline: the answer in short.
        pages: of all finished runs.
        missing: what could be there and is not, as pairs of a task (and fold) and the reason.
        warnings: what a reader must know before believing the numbers.
        provenance: further facts of how the runs were made: a title and its lines.
        made: when.
        max_image_width: wider images are made smaller, in pixels.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    headline: Headline
    pages: Sequence[RunPage]
    missing: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()
    provenance: Sequence[tuple[str, Sequence[str]]] = ()
    made: str = ""
    max_image_width: int = 1800


@dataclass(frozen=True)
class Picture:
    """An image as a data URI, and the size to show it at, in CSS pixels."""

    uri: str
    width: int
    height: int


def render_report(report: Report) -> str:
    """Returns the HTML of a report.

    Raises:
        FileNotFoundError: a figure or table of a page is gone.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": format_number, "words": format_key}
    environment.globals |= {
        "image": lambda path: inline_image(path, report.max_image_width),
        "read_table": read_table,
        "seconds": _seconds,
    }
    return environment.get_template("template.html").render(report=report, sections=_sections(report.pages))


def inline_image(path: str | Path, max_width: int) -> Picture:
    """Returns an image to stand inside HTML: small files as they are, large ones as WebP of at most `max_width` pixels.

    Raises:
        FileNotFoundError: there is no such file.
    """
    content = _read(Path(path))
    with Image.open(io.BytesIO(content)) as image:
        kind, shown_at = f"{image.format}".lower(), [round(side * _CSS_DPI / FIGURE_DPI) for side in image.size]
        if len(content) > _LARGE_BYTES:
            shrunk = image.convert("RGB")
            shrunk.thumbnail((max_width, image.height))
            smaller = io.BytesIO()
            shrunk.save(smaller, "WEBP", quality=_WEBP_QUALITY, method=4)
            content, kind = smaller.getvalue(), "webp"
    return Picture(f"data:image/{kind};base64,{base64.b64encode(content).decode()}", *shown_at)


def read_table(run_dir: Path, table: PageTable) -> dict[str, Any]:
    """Reads what is shown of a csv: column names, cells as text, whether a column is numeric, and the number of rows.

    Columns of names and ids are shown as they stand in the file: leading zeros are part of an id.

    Raises:
        FileNotFoundError: the csv is gone.
        ValueError: a column that the page asks for is not in it.
    """
    path = run_dir / table.path
    content = pd.read_csv(io.BytesIO(_read(path)), dtype=str, keep_default_na=False)
    columns = list(content.columns) if table.columns is None else list(table.columns)
    if unknown := [column for column in columns if column not in content]:
        raise ValueError(f"Expected the columns {unknown} in {path}, got {list(content.columns)}: run its task again.")
    shown = content[columns].head(table.max_rows)
    is_numeric = {column: _is_numeric(column, shown[column].tolist()) for column in columns}
    shown = shown.apply(lambda column: column.map(_format_cell) if is_numeric[column.name] else column)
    header = list(is_numeric.items())
    rows = [list(zip(row, is_numeric.values(), strict=True)) for row in shown.itertuples(index=False)]
    return {"header": header, "rows": rows, "n_rows": len(content), "path": path}


def format_number(value: Any) -> str:
    """Returns a number as a reader wants it: thousands apart, four significant digits, text as it is."""
    if isinstance(value, str):
        return value or "–"
    if value is None or math.isnan(value):
        return "–"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}"


def format_key(key: str) -> str:
    """Returns a key of results or a column name as words: `n_slides` is `slides`."""
    return key.removeprefix("n_").replace("_", " ")


def _format_cell(text: str) -> str:
    if text.lower() in ("", "nan"):
        return "–"
    # An integer stays as written; 1.0 in a table of shares is 1.000, not 1.
    if text.lstrip("+-").isdigit():
        return text
    value = float(text)
    return f"{value:.3f}" if 0.01 <= abs(value) < 1000 or value == 0 else f"{value:.2g}"


def _is_numeric(column: str, values: Sequence[str]) -> bool:
    if column.endswith("_id") and column != "neuron_id":
        return False
    filled = [value for value in values if value.lower() not in ("", "nan")]
    numbers: Any = pd.to_numeric(pd.Series(filled, dtype=str), errors="coerce")
    return bool(filled) and bool(numbers.notna().all())


def _sections(pages: Sequence[RunPage]) -> list[dict[str, Any]]:
    """Groups the pages of a task's folds, in the order of the tasks."""
    ordered = sorted(pages, key=lambda page: (page.order, page.task, len(str(page.fold)), str(page.fold)))
    groups = [list(group) for _, group in itertools.groupby(ordered, key=lambda page: page.task)]
    return [{"title": own[0].page.title, "anchor": f"task-{own[0].task}", "pages": own} for own in groups]


def _seconds(manifest: Mapping[str, Any]) -> str:
    if not manifest.get("ended"):
        return "–"
    took = datetime.fromisoformat(manifest["ended"]) - datetime.fromisoformat(manifest["started"])
    return f"{took.total_seconds():.0f} s"


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected {path}, which a page of the report shows, found none. Run its task again with overwrite=true."
        )
    return path.read_bytes()
