"""`python -m vlkd` is the console script `vlkd`."""

import sys

from vlkd.engine.cli import main

sys.exit(main())
