#!/usr/bin/env python3
"""Print a file of an image, through symbolic links.  usage: read_file.py BOOTSTRAP BLOBS PATH

BLOBS is a directory with blobs named by their ids.  Links are resolved inside the image: a
target such as /etc/passwd is the image's, never that of this machine.
"""

import shutil
import sys

import rafs_v6


def main() -> None:
    bootstrap, blobs, path = sys.argv[1:]
    with rafs_v6.open(bootstrap, blobs=blobs) as image:
        try:
            with image.open(image.resolve(path)) as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
        except (OSError, rafs_v6.RafsError) as error:
            sys.exit(f"read_file.py: {error}")


if __name__ == "__main__":
    main()
