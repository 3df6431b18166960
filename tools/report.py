"""Makes a table and a picture of finished runs: the same as `vlkd report`."""

import sys

from vlkd.engine.cli import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
