"""The `tandem` command."""

from __future__ import annotations

import sys

import grpc.aio
import typer

from services.cli.commands.data import cctv, device_token, import_, load, quarantine, reporting, send, tag
from services.cli.commands.decision import backtest, feasibility, replay
from services.cli.commands.mesh import certs, demo, drill, streams, up, watch
from services.cli.commands.review import evidence, explain, export, incidents, ledger, report, trace
from services.cli.failure import FAILED, MISUSED, CommandFailed, of_rpc
from services.cli.terminal import LINE_BREAKS, printable
from services.common.messaging.cursors import WENT_BACK, StreamWentBack

app = typer.Typer(
    name="tandem",
    help="Joint response for tag wearers under restraining orders: run a mesh on this machine, and inspect it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(up.up)
app.command()(certs.certs)
app.command()(demo.demo)
app.command()(replay.replay)
app.command()(backtest.backtest)
app.command()(feasibility.feasibility)
app.command()(explain.explain)
app.command()(incidents.incidents)
app.command()(trace.trace)
app.command()(report.report)
app.command()(export.export)
app.command("import")(import_.import_)
app.command("device-token")(device_token.device_token)
app.command()(quarantine.quarantine)
app.command()(reporting.reporting)
app.command()(send.send)
app.command()(load.load)
app.command()(watch.watch)
app.command()(drill.drill)
app.command()(streams.streams)
app.command()(streams.migrate)
app.add_typer(ledger.app, name="ledger")
app.add_typer(tag.app, name="tag")
app.add_typer(cctv.app, name="cctv")
app.add_typer(evidence.app, name="evidence")


def main() -> None:
    """Run the command line. A failure prints one line on standard error and sets the exit code: 1 failed, 2 misused."""
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        code = _fail("stopped", FAILED)
    except typer.TyperException as error:
        # Usage errors format themselves with the option's name; the public base class only has the text.
        describe = getattr(error, "format_message", error.__str__)
        code = _fail(describe(), MISUSED)
    except CommandFailed as failed:
        code = _fail(failed.message, failed.exit_code)
    except StreamWentBack as error:
        code = _fail(f"{error.reason} (the runbook: {WENT_BACK})", FAILED)
    except grpc.aio.AioRpcError as error:
        failure = of_rpc(error)
        code = _fail(failure.message, failure.exit_code)
    sys.exit(code)


def _fail(message: str, exit_code: int) -> int:
    print(printable(message, LINE_BREAKS), file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    main()
