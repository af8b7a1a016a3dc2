"""The `tandem` command: its commands under their headings, and its failures as one line each."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import grpc.aio
import typer

from services.cli import usage
from services.cli.commands import (
    demo,
    devices,
    evidence,
    exercises,
    explain,
    feasibility,
    incidents,
    ledger,
    load,
    machine,
    mesh,
    records,
    refused,
    send,
    simulate,
    statistics,
    streams,
    up,
)
from services.common import build
from services.common.failure import FAILED, LINE_BREAKS, MISUSED, CommandFailed, failure_of, printable
from services.common.messaging.cursors import StreamWentBack
from services.local import checkup

RUN = "Run a mesh on this machine"
INSPECT = "Inspect"
DECIDE = "Decide"
PROVE = "Prove"
OPERATE = "Operate"
EXERCISE = "Exercise"
COMMANDS: tuple[tuple[str, str, Callable[..., None] | typer.Typer], ...] = (
    (RUN, "up", up.up),
    (RUN, "demo", demo.demo),
    (RUN, "open", mesh.open_),
    (RUN, "status", mesh.status),
    (RUN, "logs", mesh.logs),
    (RUN, "down", mesh.down),
    (INSPECT, "incidents", incidents.incidents),
    (INSPECT, "trace", incidents.trace),
    (INSPECT, "statistics", statistics.statistics),
    (INSPECT, "explain", explain.explain),
    (INSPECT, "get", records.get),
    (INSPECT, "quarantine", refused.quarantine),
    (INSPECT, "dead-letters", refused.dead_letters),
    (INSPECT, "reporting", devices.reporting),
    (DECIDE, "backtest", simulate.backtest),
    (DECIDE, "replay", simulate.replay),
    (DECIDE, "feasibility", feasibility.feasibility),
    (PROVE, "evidence", evidence.app),
    (PROVE, "ledger", ledger.app),
    (PROVE, "report", evidence.report),
    (PROVE, "export", evidence.export),
    (OPERATE, "doctor", machine.doctor),
    (OPERATE, "import", records.import_),
    (OPERATE, "put", records.put),
    (OPERATE, "device-token", devices.device_token),
    (OPERATE, "enrol", devices.enrol),
    (OPERATE, "tag", devices.tag_app),
    (OPERATE, "cctv", devices.cctv_app),
    (OPERATE, "watch", exercises.watch),
    (OPERATE, "certs", machine.certs),
    (OPERATE, "streams", streams.app),
    (OPERATE, "migrate", machine.migrate),
    (EXERCISE, "drill", exercises.drill),
    (EXERCISE, "send", send.send),
    (EXERCISE, "load", load.load),
)
"""Heading in the help, name, and function or group of each command, in the order of the help."""


def _print_version(wanted: bool) -> None:
    if wanted:
        python = ".".join(str(number) for number in sys.version_info[:3])
        print(f"tandem {build.software()}, nats-server {checkup.nats_server_version()}, Python {python}")
        raise typer.Exit


def tandem(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the versions of Tandem and nats-server.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Joint response for tag wearers under restraining orders: run a mesh on this machine, and inspect it."""


def _application() -> typer.Typer:
    application = typer.Typer(
        name="tandem",
        cls=usage.Group,
        callback=tandem,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for heading, name, command in COMMANDS:
        if isinstance(command, typer.Typer):
            application.add_typer(command, name=name, rich_help_panel=heading)
        else:
            application.command(name, cls=usage.Command, rich_help_panel=heading)(command)
    return application


app: Callable[..., Any] = _application()


def main() -> None:
    """Run the command line. A failure prints one line on standard error and sets the exit code: 1 failed, 2 misused."""
    try:
        code = app(standalone_mode=False, prog_name="tandem")
    except typer.Abort:
        code = _fail("stopped", FAILED)
    except typer.TyperException as error:
        code = _fail(usage.message_of(error), MISUSED)
    except BrokenPipeError:
        code = FAILED  # the reader of the output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at the end fails, too
    except (CommandFailed, StreamWentBack, grpc.aio.AioRpcError, OSError) as error:
        failure = failure_of(error)
        code = _fail(failure.message, failure.exit_code)
    sys.exit(code)


def _fail(message: str, exit_code: int) -> int:
    print(printable(message, LINE_BREAKS), file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    main()
