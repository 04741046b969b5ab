"""`python -m kodolly_adapters.train`, for torchrun."""

import sys

from .cli import main

raise SystemExit(main(sys.argv[1:]))
