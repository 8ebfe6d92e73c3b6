#!/usr/bin/env python3
"""Which bytes of which blobs do some files need?  usage: blob_ranges.py BOOTSTRAP BLOBS < PATHS

PATHS: one a line, such as the files that a container opens when it starts.  Prints blob, offset
and size of each range, none twice, and says at the end which share of all that is.
"""

import sys

import rafs_v6


def main() -> None:
    bootstrap, blobs = sys.argv[1:]
    needed = set()
    with rafs_v6.open(bootstrap, blobs=blobs) as image:
        for line in sys.stdin:
            path = image.resolve(line.rstrip("\n"))
            if image.lookup(path).is_reg:
                needed.update(image.blob_ranges(path))
        stored = sum(blob.data_size for blob in image.blobs)
    for found in sorted(needed, key=lambda r: (r.blob_id, r.offset)):
        print(found.blob_id, found.offset, found.size)
    total = sum(found.size for found in needed)
    print(f"{total} of {stored} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
