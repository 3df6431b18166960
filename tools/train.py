"""Trains a student from a config, or continues a run: the same as `vlkd train`."""

import sys

from vlkd.engine.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
