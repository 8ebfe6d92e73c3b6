"""``python -m rafs_v6.build.cli``: ``nydus-image`` without backends."""

from __future__ import annotations

import sys

from rafs_v6.build.cli import main

sys.exit(main())
