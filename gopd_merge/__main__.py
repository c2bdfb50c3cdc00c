"""`python -m gopd_merge` is `gopd-merge`."""

import sys

from gopd_merge.cli import main

sys.exit(main())
