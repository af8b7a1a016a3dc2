"""`python -m bench.country`: a country's load on a whole mesh for half an hour, with one partition and with four.

20,000 wearers and 20,000 protected persons report every 15 s in batches of 100. Incidents begin at independent moments, as many as a
country of so many wearers has alerts; desks answer and close them. In the middle, 2,000 tags come back together, each with the
positions of an hour; after that the police prolong all orders. Each minute's idle share, latencies, memory and disk are printed. The
stored log of the mesh with one partition is then folded whole and split into four partitions, and the alerts are compared.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from bench import figures
from bench.country import minutes, run
from bench.country.run import Country
from bench.country.traffic import ALERTS_A_DAY
from bench.figures import Figure
from bench.mesh import machine
from bench.mesh.running import running_mesh, said_failures, say
from services.common.failure import FAILED
from services.common.observability import telemetry


def figures_of(name: str, country: Country, wearers: int) -> list[Figure]:
    """Figures of a mesh."""
    compared = country.compared
    return [
        Figure(f"{name}: registering", 5 * wearers / country.registered_s, "records/s"),
        *minutes.figures_of(name, country.minutes, country.lost),
        Figure(f"{name}: reports of the reconnect burst", country.burst_reports, "reports"),
        Figure(f"{name}: reconnect burst durable after", country.burst_s, "s"),
        Figure(f"{name}: all orders prolonged after", country.renewed_s, "s"),
        *(
            [
                Figure(f"{name}: alerts of the stored log", compared.alerts, "alerts"),
                figures.at_most(
                    f"{name}: alerts that differ when it is split",
                    len(compared.only_whole) + len(compared.only_split) + len(compared.torn),
                    "alerts",
                    target=0,
                ),
            ]
            if compared
            else []
        ),
    ]


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    minutes_: Annotated[int, typer.Option("--minutes", help="Minutes of each mesh.", min=3)] = 30,
    wearers: Annotated[int, typer.Option(help="Number of wearers, and of protected persons.", min=10)] = 20_000,
    *,
    alerts_a_day: Annotated[float, typer.Option(help="Incidents of a wearer in a day.", min=0.001)] = ALERTS_A_DAY,
    partitions: Annotated[list[int], typer.Option(help="Partitions of each mesh, one mesh after another.")] = [1, 4],  # noqa: B006
) -> None:
    """Measure a country's load on a whole mesh, with one partition and with four."""
    telemetry.configure("bench")
    # SIGTERM acts like Ctrl-C: it stops the mesh and removes its folder.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    out = Console(highlight=False, width=140)
    all_figures = [Figure("calibration loop", machine.calibration_ms(), "ms")]
    about = machine.describe(Path(tempfile.gettempdir()))
    versions = machine.versions()
    failed = False
    with said_failures():
        for count in partitions:
            with tempfile.TemporaryDirectory(prefix="tandem-bench-") as temporary:
                folder, name = Path(temporary) / "mesh", f"P = {count}"
                with running_mesh(folder, count) as (running, up_pid):
                    fsync_ms = machine.fsync_ms(folder / "nats")
                    country = uvloop.run(
                        run.run(folder, running, up_pid, wearers=wearers, minutes=minutes_, alerts_a_day=alerts_a_day)
                    )
            all_figures.append(Figure(f"{name}: fsync of 4 KiB, median", fsync_ms, "ms"))
            all_figures += figures_of(name, country, wearers)
            failed |= bool(country.lost) or bool(country.compared and not country.compared.same)
            if not as_json:
                out.print(f"{wearers:,} wearers, {name}")
                out.print(minutes.table(country.minutes))
            for example in (
                (*country.compared.only_whole[:3], *country.compared.only_split[:3]) if country.compared else ()
            ):
                say(f"[bold red]DIFFERS:[/] {example}")
    figures.show(about, versions, all_figures, as_json=as_json)
    if failed:
        raise typer.Exit(FAILED)


if __name__ == "__main__":
    typer.run(main)
