"""Writes feature files of videos: the same as `vlkd features`."""

import sys

from vlkd.infer.features_cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
