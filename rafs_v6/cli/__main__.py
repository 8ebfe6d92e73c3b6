"""``python -m rafs_v6.cli``: ``nydus-image`` without backends."""

from __future__ import annotations

import sys

from rafs_v6.cli import main

sys.exit(main())
