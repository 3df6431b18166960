"""Segments images and videos with your own words, or classifies them: the same as `vlkd infer`."""

import sys

from vlkd.infer.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
