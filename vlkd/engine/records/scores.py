"""Scores as a table that never goes without its protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def print_scores(title: str, scores: Mapping[str, float], protocol: Mapping[str, Any]) -> None:
    """Prints scores and, below them, the protocol flags under which they hold."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "", title=title, show_header=False)
    for name, value in scores.items():
        table.add_row(f"score/{name}", f"{value:.4f}")
    table.add_section()
    for name, flag in protocol.items():
        table.add_row(name, str(flag))
    Console().print(table)
