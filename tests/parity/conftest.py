"""Comparisons with the original implementations; `tox -e parity` installs them. Without them these tests are skipped."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
