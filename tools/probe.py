"""Probes a student of the lexicon and its teacher: the same as `vlkd probe`."""

import sys

from vlkd.engine.cli import main

if __name__ == "__main__":
    sys.exit(main(["probe", *sys.argv[1:]]))
