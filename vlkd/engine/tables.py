"""Tables as Markdown, and on a terminal as rich draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Table:
    """Columns and rows of plain values; numbers are shown aligned right, None as a dash."""

    title: str
    columns: list[str]
    rows: list[list[Any]] = field(default_factory=list)

    @classmethod
    def of(cls, title: str, rows: Sequence[dict[str, Any]]) -> Table:
        """From dictionaries; the columns are their keys in order of appearance."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        return cls(title, columns, [[row.get(key) for key in columns] for row in rows])

    def cells(self) -> list[list[str]]:
        """The rows as shown."""
        return [[shown(value) for value in row] for row in self.rows]

    def right(self, column: int) -> bool:
        """Whether a column holds numbers."""
        values = [row[column] for row in self.rows if row[column] is not None]
        return bool(values) and all(isinstance(value, int | float) for value in values)

    def markdown(self) -> str:
        """The table below its title as a heading."""
        rule = ["---:" if self.right(k) else "---" for k in range(len(self.columns))]
        escaped = [[cell.replace("|", "\\|") for cell in row] for row in self.cells()]
        lines = ["| " + " | ".join(row) + " |" for row in (self.columns, rule, *escaped)]
        return "\n".join([*([f"## {self.title}", ""] if self.title else []), *lines]) + "\n"

    def show(self) -> None:
        """Prints it: drawn on a terminal, as Markdown into logs and pipes."""
        import sys

        if not sys.stdout.isatty():
            print(self.markdown(), flush=True)
            return
        from rich.console import Console
        from rich.table import Table as Drawn
        from rich.text import Text

        drawn = Drawn(title=self.title or None)
        for k, column in enumerate(self.columns):
            drawn.add_column(column, justify="right" if self.right(k) else "left")
        for row in self.cells():
            drawn.add_row(*map(Text, row))
        Console().print(drawn)


def shown(value: Any) -> str:
    """A value as a cell: whole numbers grouped by thousands, others with four digits."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
