"""The process that outlives `tandem up` by a moment: when `up` dies, however it dies, its children are killed.

It reads lines from its standard input: `+<pid>` when a child starts, `-<pid>` when it has ended. The pipe's other end
is open in `up` alone, so the end of the input is the end of `up`. It works alike on every POSIX system.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress


def main() -> None:
    """Keeps the list until the input ends, then kills what is left on it."""
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
