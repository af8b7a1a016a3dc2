"""Child guard: a process that kills the children of `tandem up` when `up` dies, however it dies.

The guard reads lines from its standard input: `+<pid>` when a child starts, `-<pid>` when a child has ended. Only `up` holds the
other end of the pipe, so the input ends when `up` dies. This works on every POSIX system.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress


def main() -> None:
    """Tracks the running children until the input ends, then kills the remaining ones."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    alive: set[int] = set()
    for line in sys.stdin.buffer:
        pid = int(line[1:])
        if line.startswith(b"+"):
            alive.add(pid)
        else:
            alive.discard(pid)
    for pid in alive:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
