"""``python -m medsegmamba_bids`` is the command ``medsegmamba``."""

import sys

from medsegmamba_bids.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
