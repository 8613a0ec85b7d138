"""Tables that people made: csv files read as text, with errors that say what is wrong with the file."""

import codecs
import csv
import gzip
import io
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# What `str.strip` leaves: characters without width, which nobody sees either.
_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"


def read_table(path: str | Path) -> dict[str, list[str]]:
    """Reads a csv with a header into columns; every value stays a string, an empty cell is "".

    Args:
        path: a file in UTF-8, with or without a byte order mark; empty lines are left out.

    Raises:
        ValueError: when it is in another encoding, has no header, names a column twice, or a line has more or fewer
            values than the header.
    """
    path = Path(path)
    reader = csv.reader(io.StringIO(read_text(path), newline=""))
    rows: list[list[str]] = []
    try:
        for row in reader:
            if not row:
                continue
            if rows and len(row) != len(rows[0]):
                raise ValueError(
                    f"Expected {len(rows[0])} values in every line of {path}, as its header has, got {len(row)} in "
                    f"line {reader.line_num}: add or remove commas there."
                )
            rows.append(row)
    except csv.Error as error:
        raise ValueError(f"Expected a csv at {path}, got {error} in line {reader.line_num}: save it again.") from error
    if not rows:
        raise ValueError(f"Expected a csv with a header at {path}, got an empty file: write or copy it again.")
    header = rows[0]
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise ValueError(f"Expected each column once in {path}, got {twice} more than once: rename or remove one.")
    return {name: [row[i] for row in rows[1:]] for i, name in enumerate(header)}


def read_text(path: str | Path) -> str:
    """Reads a text file in UTF-8, without its byte order mark; one called `.gz` is unpacked.

    Raises:
        ValueError: when it is in another encoding, or damaged.
    """
    content = Path(path).read_bytes()
    if Path(path).suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"Expected a whole gzip file at {path}, got {error}. Copy it again.") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = "UTF-16" if content.startswith(_WIDE_MARKS) else f"other bytes at byte {error.start}"
        raise _not_utf8(path, found) from error
    if "\0" in text:  # UTF-16 of Latin letters, without its mark, decodes
        raise _not_utf8(path, "bytes of zero, as UTF-16 has")
    return text


def refuse_blanks(values: Iterable[str], what: str, path: str | Path, may_be_empty: bool = False) -> None:
    """Refuses values that are empty or that only blanks tell from others: "p0 " and "p0" look alike and are not equal.

    Blanks are all that Unicode calls white space (tabs, no-break spaces) and characters without width.

    Args:
        values: of one column.
        what: what they are, "case_id" or "ids".
        path: where they stand.
        may_be_empty: whether an empty value is one.

    Raises:
        ValueError: listing the values.
    """
    wrong = (value for value in values if value != _stripped(value) or not (value or may_be_empty))
    if bad := list(dict.fromkeys(wrong)):
        none_empty = "" if may_be_empty else ", and none empty,"
        raise ValueError(
            f"Expected {what} without blanks around them{none_empty} in {path}, got {some(bad)}: correct them there."
        )


def repeated(values: Iterable[str]) -> list[str]:
    """Returns the values that occur more than once, each once."""
    return [value for value, count in Counter(values).items() if count > 1]


def some(names: Sequence[str], most: int = 5) -> str:
    """Returns the first names in quotes, and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _stripped(value: str) -> str:
    before = None
    while before != value:
        before, value = value, value.strip().strip(_INVISIBLE)
    return value


def _not_utf8(path: str | Path, found: str) -> ValueError:
    return ValueError(f"Expected text in UTF-8 in {path}, got {found}: save it again as UTF-8 (in Excel: CSV UTF-8).")
