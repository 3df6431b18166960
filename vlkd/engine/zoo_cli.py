"""`vlkd zoo list|show|download|verify|publish`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from vlkd.engine.bundle import read_card
from vlkd.engine.hub import Entry, Zoo
from vlkd.errors import UserError


def zoo(argv: Sequence[str]) -> int:
    """Runs one zoo command; the exit code is 1 when `verify` finds a damaged or missing file."""
    arguments = _parser().parse_args(argv)
    if arguments.command == "publish":
        from vlkd.engine.publish import publish

        given = arguments.bundle, arguments.name, arguments.score, arguments.config, arguments.licence
        print(f"written: {publish(*given)}")
        return 0
    shelf = Zoo.open()
    if arguments.command == "list":
        return _list(shelf)
    entries = [shelf.entry(name) for name in arguments.names] or list(shelf.entries.values())
    if arguments.command == "show":
        return _show(shelf, entries)
    if arguments.command == "download":
        return _download(shelf, entries)
    return _verify(shelf, entries)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vlkd zoo", description="The models that can be used by name.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="one line for each model").set_defaults(names=[])
    for name, text in (
        ("show", "all that is known of a model: score, protocol, licence, command"),
        ("download", "fetch models into the cache (VLKD_CACHE, VLKD_MIRROR, VLKD_OFFLINE)"),
        ("verify", "compare the files on this machine with their sha256"),
    ):
        commands.add_parser(name, help=text).add_argument(
            "names", nargs="+" if name == "show" else "*", metavar="NAME", help="default: all models"
        )
    add = commands.add_parser("publish", help="put a run's bundle into the zoo, in half precision")
    add.add_argument("bundle", type=Path)
    add.add_argument("--name", required=True)
    add.add_argument("--score", required=True, help="which score of the card the manifest shows")
    add.add_argument("--config", required=True, help="the config that made it, as in configs/")
    add.add_argument("--licence", default="Apache-2.0")
    return parser


def _list(shelf: Zoo) -> int:
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(Column("name", no_wrap=True), "kind", "input", "score", "size", "licence", "here")
    for entry in shelf.entries.values():
        path = shelf.local(entry)
        table.add_row(
            entry.name,
            entry.kind,
            entry.input,
            entry.score,
            _size(entry, path),
            entry.licence,
            "yes" if path else "no",
        )
    Console().print(table if shelf.entries else f"{shelf.folder}: no models yet")
    return 0


def _show(shelf: Zoo, entries: list[Entry]) -> int:
    from rich.console import Console
    from rich.table import Table

    for entry in entries:
        table = Table("key", "value", title=entry.name, show_header=False)
        for key, value in vars(entry).items():
            if value:
                table.add_row(key, str(value))
        path = shelf.local(entry)
        if path:
            table.add_row("path", str(path))
            for key, value in read_card(path).items():
                if key in ("scores", "protocol", "input_spec", "data", "method"):
                    table.add_row(f"card: {key}", value if isinstance(value, str) else json.dumps(value))
        Console().print(table)
    return 0


def _download(shelf: Zoo, entries: list[Entry]) -> int:
    for entry in entries:
        print(f"{entry.name}: {shelf.get(entry)}")
    return 0


def _verify(shelf: Zoo, entries: list[Entry]) -> int:
    bad = 0
    for entry in entries:
        path = shelf.local(entry)
        if path is None:
            print(f"{entry.name}: not on this machine; fetch it with: vlkd zoo download {entry.name}")
            bad += bool(
                entry.file
            )  # a file of the repository must be there; an address need not have been fetched
            continue
        try:
            shelf.get(entry)
            print(f"{entry.name}: good ({path})")
        except UserError as problem:
            bad += 1
            print(problem)
    return int(bad > 0)


def _size(entry: Entry, path: Path | None) -> str:
    size = path.stat().st_size if path else entry.size
    return f"{size / 1e6:.1f} MB" if size else ""
