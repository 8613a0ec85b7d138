"""What one finished run says in the report: a page of paragraphs, numbers, figures and tables, kept as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from src.files import write_atomically

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class PageFigure:
    """A PNG of the run and the sentence under it."""

    path: str | Path
    caption: str


@dataclass(frozen=True)
class PageTable:
    """A csv of the run; the report shows its first `max_rows` rows and the named columns (all when None)."""

    path: str | Path
    caption: str
    max_rows: int = 20
    columns: Sequence[str] | None = None


@dataclass(frozen=True)
class Page:
    """One task's part of the report.

    Files are named, not copied, so the report reads them where the run left them.
    """

    title: str
    paragraphs: Sequence[str] = ()
    numbers: Mapping[str, float | int | str] = field(default_factory=dict)
    figures: Sequence[PageFigure] = ()
    tables: Sequence[PageTable] = ()


def write_page(page: Page, path: str | Path) -> None:
    """Writes `page` as JSON into a run directory.

    Args:
        page: The page; its figures and tables must exist already.
        path: The file to write; its folder is the run directory that stored paths are relative to.

    Raises:
        FileNotFoundError: A figure or table is not there.
        ValueError: A figure or table lies outside the run directory.
    """
    path = Path(path)
    run_dir = path.parent.resolve()
    record = {"schema_version": SCHEMA_VERSION, **asdict(page)}
    for entry in (*record["figures"], *record["tables"]):
        entry["path"] = _relative(entry["path"], run_dir)
    with write_atomically(path) as temporary:
        # default=float: numbers may be numpy or torch scalars.
        temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False, default=float) + "\n", encoding="utf-8")


def read_page(path: str | Path) -> Page:
    """Reads what `write_page` wrote; paths of figures and tables come back relative to the run directory.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not a page of this version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Expected a page at {path}, found none. Run its task again with overwrite=true.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if (version := record.pop("schema_version")) != SCHEMA_VERSION:
            raise ValueError(f"schema version {version}")
        for table in record["tables"]:
            table["columns"] = table["columns"] and tuple(table["columns"])
        shown = {"figures": PageFigure, "tables": PageTable}
        record |= {name: tuple(kind(**one) for one in record[name]) for name, kind in shown.items()}
        return Page(**record | {"paragraphs": tuple(record["paragraphs"])})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"Expected a page of schema version {SCHEMA_VERSION} in {path}, got {error}. "
            "Run its task again with overwrite=true."
        ) from error


def _relative(path: str | Path, run_dir: Path) -> str:
    resolved = Path(path).resolve()
    if not resolved.is_file():
        raise FileNotFoundError(f"Expected a figure or table at {resolved}, found none. Write it before the page.")
    if not resolved.is_relative_to(run_dir):
        raise ValueError(f"Expected figures and tables inside the run directory {run_dir}, got {resolved}.")
    return resolved.relative_to(run_dir).as_posix()
