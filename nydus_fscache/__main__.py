"""``python -m nydus_fscache``: the same as the command ``nydus-fscache``."""

import sys

from nydus_fscache.cli.fscache.main import main

sys.exit(main())
