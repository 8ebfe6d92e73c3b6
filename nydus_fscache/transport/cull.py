"""A process of its own that has the kernel cull files of its cache.

Why not the service itself: ``cull NAME`` means NAME in the current directory, which all
threads of a process share.

usage: python -I -S cull.py DEVICE    (a descriptor that it inherits, of a bound /dev/cachefiles)
Standard input: paths, each ended by a NUL.  Prints a line for each: 0, or the errno of what went
wrong; EBUSY is in use, ESTALE and ENOENT is not there.
Source: reference kernel-transports 1.9; fs/cachefiles/daemon.c and namei.c (Linux 6.1).
"""

import errno
import os
import sys


def main(device: int) -> None:
    for path in sys.stdin.buffer.read().split(b"\0")[:-1]:
        directory, _, name = path.rpartition(b"/")
        outcome = 0
        try:
            os.chdir(directory)
            os.write(device, b"cull " + name)
        except OSError as e:
            outcome = e.errno or errno.EIO
        print(outcome, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
