"""One line about the machine, for every result file."""

from __future__ import annotations

from vlkd.engine.records.machine import machine as facts


def machine() -> str:
    """Cores, processor, Python and torch versions, date."""
    found = facts()
    return (
        f"Machine: {found['cores']} cores, {found['device']}, Python {found['python']}, "
        f"torch {found['torch']}, {found['date']}."
    )
