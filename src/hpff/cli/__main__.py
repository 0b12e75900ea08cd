"""`python -m hpff.cli`."""

import sys

from hpff.cli import main

sys.exit(main())
