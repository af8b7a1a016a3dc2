"""The `tandem` command: its commands under their headings, and its failures as one line each."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import grpc.aio
import typer

from services.cli import build, usage
from services.cli.commands.decide import backtest, feasibility, replay
from services.cli.commands.exercise import drill, load, send
from services.cli.commands.inspect import (
    dead_letters,
    explain,
    get,
    incidents,
    quarantine,
    reporting,
    statistics,
    trace,
)
from services.cli.commands.operate import (
    cctv,
    certs,
    device_token,
    doctor,
    enrol,
    import_,
    migrate,
    put,
    streams,
    tag,
    watch,
)
from services.cli.commands.prove import evidence, export, ledger, report
from services.cli.commands.run import demo, down, logs, open_, status, up
from services.cli.failure import FAILED, MISUSED, CommandFailed, of_os, of_rpc
from services.cli.stack import checkup
from services.cli.terminal import LINE_BREAKS, printable
from services.common.messaging.cursors import WENT_BACK, StreamWentBack

RUN, INSPECT, DECIDE = "Run a mesh on this machine", "Inspect", "Decide"
PROVE, OPERATE, EXERCISE = "Prove", "Operate", "Exercise"
COMMANDS: tuple[tuple[str, str, Callable[..., None] | typer.Typer], ...] = (
    (RUN, "up", up.up),
    (RUN, "demo", demo.demo),
    (RUN, "open", open_.open_),
    (RUN, "status", status.status),
    (RUN, "logs", logs.logs),
    (RUN, "down", down.down),
    (INSPECT, "incidents", incidents.incidents),
    (INSPECT, "trace", trace.trace),
    (INSPECT, "statistics", statistics.statistics),
    (INSPECT, "explain", explain.explain),
    (INSPECT, "get", get.get),
    (INSPECT, "quarantine", quarantine.quarantine),
    (INSPECT, "dead-letters", dead_letters.dead_letters),
    (INSPECT, "reporting", reporting.reporting),
    (DECIDE, "backtest", backtest.backtest),
    (DECIDE, "replay", replay.replay),
    (DECIDE, "feasibility", feasibility.feasibility),
    (PROVE, "evidence", evidence.app),
    (PROVE, "ledger", ledger.app),
    (PROVE, "report", report.report),
    (PROVE, "export", export.export),
    (OPERATE, "doctor", doctor.doctor),
    (OPERATE, "import", import_.import_),
    (OPERATE, "put", put.put),
    (OPERATE, "device-token", device_token.device_token),
    (OPERATE, "enrol", enrol.enrol),
    (OPERATE, "tag", tag.app),
    (OPERATE, "cctv", cctv.app),
    (OPERATE, "watch", watch.watch),
    (OPERATE, "certs", certs.certs),
    (OPERATE, "streams", streams.app),
    (OPERATE, "migrate", migrate.migrate),
    (EXERCISE, "drill", drill.drill),
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
    except CommandFailed as failed:
        code = _fail(failed.message, failed.exit_code)
    except StreamWentBack as error:
        code = _fail(f"{error.reason} (the runbook: {WENT_BACK})", FAILED)
    except grpc.aio.AioRpcError as error:
        failure = of_rpc(error)
        code = _fail(failure.message, failure.exit_code)
    except BrokenPipeError:
        code = FAILED  # the reader of the output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at the end fails, too
    except OSError as error:
        code = _fail(of_os(error), FAILED)
    sys.exit(code)


def _fail(message: str, exit_code: int) -> int:
    print(printable(message, LINE_BREAKS), file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    main()
