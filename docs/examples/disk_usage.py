#!/usr/bin/env python3
"""How many bytes of files are below each directory of an image?  usage: disk_usage.py BOOTSTRAP

Needs no blobs.  A file with several names is counted where it is first met.
"""

import os
import sys

import rafs_v6


def disk_usage(image: rafs_v6.Image) -> dict[bytes, int]:
    sizes: dict[bytes, int] = {}
    seen = set()
    for path, inode in image.walk():
        if inode.is_dir:
            sizes[path] = 0
        elif inode.is_reg and inode.nid not in seen:
            seen.add(inode.nid)
            directory = path
            while directory != b"/":
                directory = os.path.dirname(directory)
                sizes[directory] += inode.size
    return sizes


def main() -> None:
    with rafs_v6.open(sys.argv[1]) as image:
        for path, size in sorted(disk_usage(image).items(), key=lambda item: -item[1]):
            print(f"{size:>12} {os.fsdecode(path)}")


if __name__ == "__main__":
    main()
