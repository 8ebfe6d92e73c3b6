"""Starts the keeper, run by path with ``python -I -S``: keeper.py out of its compiled file.

A program that is run by path is compiled by each start, which costs this process 1.2 MiB for good.
"""

import os
import sys

if __name__ == "__main__":  # isolated: the package is not found by itself
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from nydus_fscache.handover.keeper import main

    sys.exit(main(sys.argv[1:]))
