"""`python -m pixart`, the same as the command `pixart`."""

import sys

from pixart.cli import main

sys.exit(main())
