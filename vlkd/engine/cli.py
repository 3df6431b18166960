"""The console script `vlkd train|test|infer|...` (see USAGE); tools/ calls the same functions."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from vlkd import __version__
from vlkd.errors import UserError

USAGE = """usage: vlkd COMMAND ...

  train     train a student from a config, or continue a run
  test      score a bundle, or a run's checkpoint
  infer     segment images and videos with your own words, or classify them
  report    make a table and a picture of finished runs
  zoo       list, show, download and verify the ready-made models
  data      list and check video data sets and predictions, write submissions, or the world as a set
  features  write feature files of videos
  probe     ask what a student of the lexicon knows, and its teacher

vlkd COMMAND --help tells more; vlkd --version shows the version.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; a UserError becomes one line and exit code 2, Ctrl-C becomes 130."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if words else 2
    if words[0] == "--version":
        print(f"vlkd {__version__}")
        return 0
    try:
        return _run(words[0], words[1:])
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone; python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(command: str, words: list[str]) -> int:
    if command == "train":
        from vlkd.engine.training import train

        return train(words)
    if command == "test":
        from vlkd.engine.scoring import test

        return test(words)
    if command == "infer":
        from vlkd.infer.cli import main as infer

        return infer(words)
    if command == "report":
        from vlkd.engine.records.report import report

        return report(words)
    if command == "zoo":
        from vlkd.engine.zoo_cli import zoo

        return zoo(words)
    if command == "data":
        from vlkd.engine.data_cli import data

        return data(words)
    if command == "features":
        from vlkd.infer.features_cli import main as features

        return features(words)
    if command == "probe":
        from vlkd.engine.probe_cli import probe

        return probe(words)
    raise UserError(
        f"{command}: unknown command; expected train, test, infer, report, zoo, data, features or probe"
    )
