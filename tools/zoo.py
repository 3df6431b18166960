"""Lists, shows, fetches and verifies models: the same as `vlkd zoo`."""

import sys

from vlkd.engine.cli import main

if __name__ == "__main__":
    sys.exit(main(["zoo", *sys.argv[1:]]))
