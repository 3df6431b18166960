"""Reading the files of downstream tasks so that every bad line is one line that names file and number."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlkd.data.files import read_text
from vlkd.errors import UserError

Row = tuple[str, dict[str, str]]  # "file:line" and the values by column


def lines(path: Path, what: str) -> list[str]:
    """Lines of a text file, the last empty one aside. Raises UserError where it cannot be read.

    Not str.splitlines, which also ends a line at characters that stand in the sentences.
    """
    found = read_text(path, f"not found; expected {what}").split("\n")
    found = [line.removesuffix("\r") for line in found]
    return found[:-1] if not found[-1] else found


def tsv_rows(
    path: Path, columns: Sequence[str], problems: list[str], header: Sequence[str] | None = None
) -> Iterator[Row]:
    """Rows of a file of tabs, quotes being characters like others; `header`: of a file that has none.

    Lines with fewer values than the header go to `problems`. Raises UserError for a header without one of
    the columns.
    """
    rows = lines(path, f"a TSV with the columns {', '.join(columns)}")
    first = 1 if header is None else 0
    if header is None:
        header = rows[0].split("\t") if rows else []
        _check_header(path, header, columns)
    for number, line in enumerate(rows[first:], first + 1):
        values = line.split("\t")
        if len(values) < len(header):
            problems.append(
                f"{path}:{number}: {len(values)} values, expected {len(header)} with tabs between"
            )
            continue
        yield f"{path}:{number}", dict(zip(header, values, strict=False))


def csv_rows(path: Path, columns: Sequence[str], problems: list[str]) -> Iterator[Row]:
    """Rows of a comma-separated file with quotes and a header, named by the line where they begin.

    As `tsv_rows`; a quote that is not closed ends it, because it would take the lines after it.
    """
    text = read_text(path, f"not found; expected a CSV with the columns {', '.join(columns)}")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    number = 1
    try:
        header = next(reader, [])
        _check_header(path, header, columns)
        number = reader.line_num + 1
        for values in reader:
            if len(values) != len(header):
                problems.append(f"{path}:{number}: {len(values)} values, expected {len(header)}")
            else:
                yield f"{path}:{number}", dict(zip(header, values, strict=True))
            number = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{number}: not a CSV ({error})") from None


def json_rows(path: Path, columns: Sequence[str], problems: list[str]) -> Iterator[Row]:
    """Objects of a file with a JSON object a line; one without a column, as text, goes to `problems`."""
    for number, line in enumerate(lines(path, f"a JSON object a line with {', '.join(columns)}"), 1):
        try:
            found: Any = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"{path}:{number}: not a JSON object ({error.msg})")
            continue
        lacking = [
            key for key in columns if not isinstance(found, dict) or not isinstance(found.get(key), str)
        ]
        if lacking:
            problems.append(f"{path}:{number}: no text {', '.join(lacking)}; expected {', '.join(columns)}")
            continue
        yield f"{path}:{number}", found


def _check_header(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    lacking = [name for name in columns if name not in header]
    if lacking:
        raise UserError(
            f"{path}:1: no column {', '.join(lacking)}; the header has {', '.join(header)[:200] or 'nothing'}"
        )
