"""`python -m kodolly`: the same as the `kodolly` command."""

import sys

from kodolly.cli import main

sys.exit(main())
