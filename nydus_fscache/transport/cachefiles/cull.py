"""A process of its own that has the kernel cull files of its cache.

Why not the service itself: ``cull NAME`` means NAME in the current directory, which all
threads of a process share.

usage: python -I -S cull.py DEVICE VERB
DEVICE: a descriptor that it inherits, of a bound /dev/cachefiles.  VERB: cull, or inuse, after
which what is not in use is deleted here, but no directory.  Standard input: paths, each ended by
a NUL.  Prints a line for each: 0, or the errno of what went wrong; EBUSY is in use, ENOENT and
ESTALE is not there.
Source: reference kernel-transports 1.9, 1.10; fs/cachefiles/daemon.c and namei.c (Linux 6.1).
"""

import errno
import os
import sys

# CVE-2026-43106: a cull drops a reference that it does not have.  Which releases of these have
# the fix (1635c2acdde8, of the time of 7.0-rc6) is not told by their numbers alone.
_BROKEN = (("6", "19"), ("7", "0"))


def verb(release: str) -> str:
    """For a kernel of this release.

    ``inuse`` leaves a moment in which the kernel may open what is deleted then: it goes on with
    the file that has no name any more, and makes a new one the next time.
    """
    major, _, rest = release.partition(".")
    minor = rest.partition(".")[0].partition("-")[0]
    return "inuse" if (major, minor) in _BROKEN else "cull"


def main(device: int, word: str) -> None:
    for path in sys.stdin.buffer.read().split(b"\0")[:-1]:
        directory, _, name = path.rpartition(b"/")
        outcome = 0
        try:
            os.chdir(directory)
            os.write(device, word.encode() + b" " + name)
            if word == "inuse":
                os.unlink(name)
        except OSError as e:
            outcome = e.errno or errno.EIO
        print(outcome, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
