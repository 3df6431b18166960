"""Documents of text files: WikiText articles, WikiExtractor's <doc> elements, paragraphs, or single lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from vlkd.errors import UserError
from vlkd.text.names import nearest_hint

Format = Literal["auto", "wikitext", "wikiextractor", "paragraphs", "lines"]
_HEADING = re.compile(r"^\s*(=(?: =)*) .+? \1\s*$")
_GUESSED_FROM = 1000  # lines


def documents(path: str | Path, format: Format = "auto", headings: bool = False) -> Iterator[str]:
    """The documents of a file in order, lines joined by spaces; empty ones are left out.

    wikitext: " = Title = " begins a document, " = = Section = = " is within; wikiextractor: <doc ...> to
    </doc>; paragraphs: blank lines are between; lines: each line is one. auto looks at the first lines.
    `headings`: keep the lines with titles. Raises UserError for a file that cannot be read as text.
    """
    if format not in get_args(Format):
        raise UserError(f"data.format={format}: unknown{nearest_hint(format, get_args(Format))}")
    path = Path(path).expanduser()
    form = guess_format(path) if format == "auto" else format
    kept: list[str] = []
    for line in _lines(path):
        line = " ".join(line.split())
        title = _heading(line) if form == "wikitext" else 0
        tag = form == "wikiextractor" and (line.startswith("<doc ") or line == "</doc>")
        if tag or title == 1 or form == "lines" or (form == "paragraphs" and not line):
            if kept:
                yield " ".join(kept)
            kept = []
        if line and not tag and (headings or not title):
            kept.append(line.strip("= ") if title else line)
    if kept:
        yield " ".join(kept)


def guess_format(path: Path) -> Format:
    """The format that the first lines have, paragraphs where nothing speaks for another."""
    for number, line in enumerate(_lines(path)):
        if line.startswith("<doc "):
            return "wikiextractor"
        if _heading(line) == 1:
            return "wikitext"
        if number == _GUESSED_FROM:
            break
    return "paragraphs"


def _heading(line: str) -> int:
    """Depth of a WikiText heading: 1 for a title, 0 for any other line."""
    found = _HEADING.match(line)
    return len(found[1].split()) if found else 0


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from file
    except FileNotFoundError:
        raise UserError(f"{path}: no such text file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from None
