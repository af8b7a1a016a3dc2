"""`tandem down`: stop the mesh of a folder, as Ctrl-C does in the terminal of `tandem up`."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from services.cli.failure import CommandFailed
from services.cli.stack import mesh
from services.cli.stack.mesh import DEFAULT_FOLDER
from services.cli.terminal import SafeConsole

STOP_WITHIN_S = 60.0
"""Time for all processes to end, seconds: the services get 8 s, and then nats-server as long."""
POLL_S = 0.1


def down(folder: Annotated[Path, typer.Option("--dir", help="Folder of the mesh.")] = DEFAULT_FOLDER) -> None:
    """Stop the mesh of a folder: services first, nats-server last. Its data stay, and `tandem up` continues with them."""
    if mesh.owner(folder) is None:
        print(f"no mesh runs on {folder}")
        return
    asked: set[int] = set()
    give_up_at = time.monotonic() + STOP_WITHIN_S
    with SafeConsole(stderr=True).status("stopping"):
        while (pid := mesh.owner(folder)) is not None:
            if time.monotonic() > give_up_at:
                raise CommandFailed(
                    f"the mesh on {folder} hasn't ended after {STOP_WITHIN_S:.0f} s; its process id is {pid}"
                )
            if pid and pid not in asked:
                with suppress(ProcessLookupError):  # it has ended already
                    os.kill(pid, signal.SIGTERM)
                asked.add(pid)
            time.sleep(POLL_S)
    print(f"the mesh on {folder} has stopped; its data are kept")
