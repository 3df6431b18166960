"""`vlkd report`: a table of finished runs as Markdown, HTML and picture."""

from __future__ import annotations

import argparse
import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlkd.errors import UserError

if TYPE_CHECKING:
    from vlkd.engine.records.collect import Group

FORMATS = ("md", "html", "png")
STYLE = (
    "body{font-family:sans-serif;margin:2em}table{border-collapse:collapse}"
    "td,th{border:1px solid #ccc;padding:.3em .6em;text-align:left}td.n{text-align:right}img{max-width:100%}"
)


def report(argv: Sequence[str]) -> int:
    """Prints the table and writes report.md, report.html and report.png."""
    arguments = _parser().parse_args(argv)
    formats = arguments.format.split(",")
    if wrong := [name for name in formats if name not in FORMATS]:
        raise UserError(f"--format {arguments.format}: {wrong[0]} is none of {','.join(FORMATS)}")

    from vlkd.engine.records.collect import collect
    from vlkd.engine.records.picture import draw_report
    from vlkd.engine.run_folder import write_text

    groups, notes = collect(arguments.runs)
    content = Content(groups)
    content.table.show()
    for text in [*content.notes, *notes]:
        print(text, flush=True)
    out = Path(arguments.out)
    if "md" in formats:
        write_text(out / "report.md", content.markdown())
    if "png" in formats:
        draw_report(groups, out / "report.png")
    if "html" in formats:
        write_text(out / "report.html", content.html("png" in formats))
    print(f"done: {', '.join(str(out / f'report.{name}') for name in formats)}", flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vlkd report",
        description="Puts the records of finished runs into one table: runs that differ in nothing but the "
        "seed make one row, with mean, standard deviation and worst seed.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="run folders, or folders that hold such")
    parser.add_argument(
        "--out", default="report", metavar="DIR", help="folder to write to (default: %(default)s)"
    )
    parser.add_argument(
        "--format", default=",".join(FORMATS), metavar="F,F", help="what to write (default: %(default)s)"
    )
    return parser


class Content:
    """What a report says, in whatever form: one table and the notes below it."""

    def __init__(self, groups: Sequence[Group]) -> None:
        from vlkd.engine.records.collect import common_protocol
        from vlkd.engine.tables import Table

        shared, own = common_protocol(groups)
        scores = list(dict.fromkeys(s for g in groups for s in (*g.scores, *g.paper)))
        sources: dict[str, int] = {}
        columns = ["experiment", "seeds"]
        for score in scores:
            columns += [score, *([f"{score} worst"] if _has_spread(groups, score) else [])]
            columns += [f"{score} paper"] if any(score in group.paper for group in groups) else []
        columns += ["images/s", "minutes", *(["protocol"] if any(own) else [])]
        self.table = Table("", columns)
        for group, flags in zip(groups, own, strict=True):
            row = self._row(group, sources)
            row["protocol"] = "; ".join(f"{k}: {v}" for k, v in flags.items()) or None
            self.table.rows.append([row.get(column) for column in columns])
        self.notes = [f"[{number}] {source}" for source, number in sources.items()]
        if shared:
            self.notes.append("For all: " + "; ".join(f"{k}: {v}" for k, v in shared.items()) + ".")
        self.notes.append("Machines: " + "; ".join(_machines(groups)) + ".")

    @staticmethod
    def _row(group: Group, sources: dict[str, int]) -> dict[str, Any]:
        from vlkd.engine.records.seeds import with_spread

        row: dict[str, Any] = {"experiment": group.name, "seeds": len(group.records)}
        for score, value in group.scores.items():
            row[score] = with_spread(value)
            row[f"{score} worst"] = f"{value['worst']:.4f}" if value["sd"] is not None else None
        for score, number in group.paper.items():
            source = number.get("source")
            mark = f" [{sources.setdefault(source, len(sources) + 1)}]" if source else ""
            row[f"{score} paper"] = f"{number['value']:.4f}{mark}"
        rate, minutes = group.mean_speed("images_per_second"), group.mean_speed("minutes")
        row["images/s"] = None if rate is None else round(rate, 1)
        row["minutes"] = None if minutes is None else round(minutes, 2)
        return row

    def markdown(self) -> str:
        """Table and notes."""
        return "# Report\n\n" + self.table.markdown() + "".join(f"\n{note}\n" for note in self.notes)

    def html(self, picture: bool) -> str:
        """One page; `picture`: report.png lies beside it."""
        right = [self.table.right(k) for k in range(len(self.table.columns))]
        head = "".join(f"<th>{html.escape(column)}</th>" for column in self.table.columns)
        rows = "".join(
            "<tr>"
            + "".join(
                f'<td class="n">{html.escape(cell)}</td>' if number else f"<td>{html.escape(cell)}</td>"
                for cell, number in zip(row, right, strict=True)
            )
            + "</tr>\n"
            for row in self.table.cells()
        )
        notes = "".join(f"<p>{html.escape(note)}</p>\n" for note in self.notes)
        image = '<img src="report.png" alt="scores with their spread">\n' if picture else ""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Report</title>'
            f"<style>{STYLE}</style></head><body>\n<h1>Report</h1>\n"
            f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table>\n{notes}{image}"
            "</body></html>\n"
        )


def _has_spread(groups: Sequence[Group], score: str) -> bool:
    return any(score in g.scores and g.scores[score]["sd"] is not None for g in groups)


def _machines(groups: Sequence[Group]) -> list[str]:
    found: dict[str, None] = {}
    for group in groups:
        for record in group.records.values():
            m = record.get("machine") or {}
            parts = [m.get("device"), f"{m.get('cores')} cores", f"{m.get('threads')} threads"]
            text = ", ".join([*map(str, parts), f"torch {m.get('torch')}"])
            found[text if m else "not recorded"] = None
    return list(found)
