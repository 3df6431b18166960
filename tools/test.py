"""Scores a bundle or a run: the same as `vlkd test`."""

import sys

from vlkd.engine.cli import main

if __name__ == "__main__":
    sys.exit(main(["test", *sys.argv[1:]]))
