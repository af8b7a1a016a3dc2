"""Frame of the commands that let a country's traffic run on one mesh: start it, measure, print the figures."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol

import typer
import uvloop

from bench import figures
from bench.figures import Figure
from bench.mesh import machine
from bench.mesh.running import running_mesh, said_failures
from services.client.mesh import MeshConnection
from services.common.failure import FAILED
from services.common.observability import telemetry


class Measured(Protocol):
    """Results of a run."""

    def figures(self) -> Sequence[Figure]:
        """Figures with their targets."""


def on_a_mesh(measure: Callable[[Path, MeshConnection, int], Coroutine[Any, Any, Measured]], *, as_json: bool) -> None:
    """Starts a mesh of its own, measures on it, and prints the figures, as a table or as one JSON object.

    `measure` gets the mesh's folder, its connection, and the process id of `tandem up`. Exits with FAILED if a target isn't met.
    """
    telemetry.configure("bench")
    # SIGTERM acts like Ctrl-C: it stops the mesh and removes its folder.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    about, versions = machine.describe(Path(tempfile.gettempdir())), machine.versions()
    with said_failures(), tempfile.TemporaryDirectory(prefix="tandem-bench-") as temporary:
        folder = Path(temporary) / "mesh"
        with running_mesh(folder) as (running, up_pid):
            measured = uvloop.run(measure(folder, running, up_pid)).figures()
    figures.show(about, versions, measured, as_json=as_json)
    if any(figure.met is False for figure in measured):
        raise typer.Exit(FAILED)
