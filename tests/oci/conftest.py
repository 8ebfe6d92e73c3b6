"""The helpers of tests/ are importable from here."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
