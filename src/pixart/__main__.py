"""`python -m pixart`, the same as the command `pixart`."""

import sys

from pixart.cli import main

if __name__ == "__main__":  # not in the worker processes of multiprocessing
    sys.exit(main())
