"""`tandem up`: a whole mesh on this machine, as supervised processes."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import nats.errors
import nats.js.errors
import typer
from rich.table import Table

from services.cli.commands import demo as demos
from services.cli.commands import exercises
from services.cli.terminal import SafeConsole, styled
from services.cli.usage import typed_name
from services.client import mesh
from services.client.mesh import DEFAULT_FOLDER, MeshConnection, MeshStart, NatsServer
from services.common import settings
from services.common.clock import MeshClock
from services.common.errors import FailedPrecondition
from services.common.failure import FAILED, MISUSED, CommandFailed
from services.common.messaging import streams
from services.common.messaging.streams import MAX_PARTITIONS, LogMetadata
from services.common.observability import telemetry
from services.common.privacy import secret_keys
from services.common.storage import stored_files
from services.local import authority, monitoring, nats_server, processes
from services.local.nats_server import STREAM_BYTES, Watchdog, watching
from services.local.processes import MeshPlan
from services.local.supervisor import Program, Supervisor, child_guard, supervisor

NO_SPACE = (10023, 10047)
"""Error codes of JetStream for a stream whose reservation exceeds the quota or the disk."""
HEALTHY_WITHIN_S = 120.0
"""How long a start waits for nats-server and then for the services, seconds. An idle machine takes a few, one with eight times more
work than processors more than half a minute."""
POLL_S = 0.1
LOG_LINES = 5
NATS = "nats"
WATCH = "watch"
CERTIFICATES_FOR = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Options:
    """Options of the command line of `tandem up`."""

    folder: Path
    base_port: int
    partitions: int
    clock_rate: int
    service_area: str
    tls: bool
    demo: bool
    exit: bool


class ServiceAreaOption(StrEnum):
    """Area in which protected places may lie."""

    KOREA = "korea"
    WORLD = "world"


def up(
    folder: Annotated[Path, typer.Option("--dir", help="Folder for all data of the mesh.")] = DEFAULT_FOLDER,
    base_port: Annotated[int, typer.Option(help="First of 54 ports; 0 for free ports.", min=0, max=65_000)] = 7400,
    partitions: Annotated[int, typer.Option(help="Partitions of the log.", min=1, max=MAX_PARTITIONS)] = 1,
    *,
    clock_rate: Annotated[int, typer.Option(help="Speed of the mesh's clock; 1 is real time.", min=1, max=1000)] = 1,
    service_area: Annotated[
        ServiceAreaOption,
        typer.Option(
            help="Area in which protected places may lie; `world` to replay tracks recorded abroad.",
            envvar="TANDEM_SERVICE_AREA",
        ),
    ] = ServiceAreaOption.KOREA,
    tls: Annotated[bool, typer.Option("--tls", help="Authenticate by certificate, as in production.")] = False,
    demo: Annotated[bool, typer.Option("--demo", help="Run the demo once all services are ready.")] = False,
    exit_: Annotated[bool, typer.Option("--exit", help="End after the demo, with its exit code.")] = False,
) -> None:
    """Start the whole mesh and keep it running until Ctrl-C."""
    if exit_ and not demo:
        raise CommandFailed("--exit needs --demo", MISUSED)
    options = Options(
        folder=folder.resolve(),
        base_port=base_port,
        partitions=partitions,
        clock_rate=clock_rate,
        service_area=service_area.value,
        tls=tls,
        demo=demo,
        exit=exit_,
    )
    with mesh.locked(options.folder):
        # Not uvloop: it starts processes by fork, which gRPC's threads forbid; the standard loop uses vfork.
        raise typer.Exit(asyncio.run(_until_signalled(options)))


async def _until_signalled(options: Options) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    work = asyncio.create_task(_run(options))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not work.done():
        work.cancel()
        await asyncio.wait({work})
    return 0 if work.cancelled() else work.result()


async def _run(options: Options) -> int:
    console = SafeConsole(highlight=False, soft_wrap=True)
    os.umask(0o077)  # databases, logs and keys are for this user only; the services inherit the umask
    _log(options.folder, "up").parent.mkdir(exist_ok=True)

    def say(line: str) -> None:
        console.print(styled((time.strftime("%H:%M:%S"), "dim"), f"  {line}"))

    async with AsyncExitStack() as stack:
        telemetry.configure("up", stack.enter_context(_log(options.folder, "up").open("a", buffering=1)))
        for setting, similar in settings.unknown(os.environ).items():
            say(f"{setting} is no setting and has no effect{f'; is {similar} meant?' if similar else ''}")
        began_s = time.time()
        base_port = _base_port(options.base_port)
        MeshStart(began_s, (NATS,)).save(options.folder)
        certificates = _certificates(options)
        guard = await stack.enter_async_context(child_guard())
        # Entered before the services, so that NATS stops after them: a service that stops still needs it.
        nats_supervisor = await stack.enter_async_context(supervisor(guard, say))
        server, watchdog = _start_nats(options, base_port, certificates, nats_supervisor=nats_supervisor)
        log_meta = await _create_streams(server, options)
        watchdog_end = await stack.enter_async_context(watching(watchdog)) if watchdog else asyncio.Future[None]()
        services = await stack.enter_async_context(supervisor(guard, say))
        _make_keys(options.folder)
        plan = MeshPlan(
            folder=options.folder,
            base_port=base_port,
            service_area=options.service_area,
            dev_secret="" if certificates else _dev_secret(options.folder),
            certificates=certificates,
            console_role=os.environ.get("TANDEM_CONSOLE_ROLE", "") if os.environ.get("TANDEM_OIDC_ISSUER") else "",
            server=server,
            log_meta=log_meta,
        )

        def running() -> MeshConnection:
            return plan.connection(nats_supervisor.pids | services.pids)

        for program in plan.programs():
            services.start(program)
        try:
            await _wait_until_healthy(running(), options.folder, began_s)
        except CommandFailed as failed:
            if options.demo:
                raise
            # The healthy processes must go on: one leg is better than none.
            console.print(str(failed), style="bold red")

        def save() -> None:
            running().save(options.folder)

        save()
        nats_supervisor.on_change = services.on_change = save
        console.print(_table(plan.shown_addresses()))
        say(_watch(running(), options.folder, services))
        code = 0
        if options.demo:
            code = await demos.play(running(), as_json=False, folder=options.folder, mesh_stops=options.exit)
        if options.exit:
            return code
        where = f"its console is at {plan.console_url} ." if plan.has_console else "it has no console."
        where += f" Her app is at {plan.field_url} (`tandem enrol`)."
        name, there = typed_name(), mesh.dir_option(options.folder)
        console.print(
            f"The mesh runs; {where} Ctrl-C stops it, or `{name} down{there}`. Its state: `{name} status{there}`."
        )
        await watchdog_end
        raise AssertionError("the watchdog ended")


def _watch(running: MeshConnection, folder: Path, services: Supervisor) -> str:
    """Starts `tandem watch` if a pager is configured. Returns a line for the user that says whether it was started."""
    configured = [name for name in (exercises.COMMAND, exercises.WEBHOOKS) if os.environ.get(name)]
    if not configured:
        return f"No tandem watch: no pager is configured. Set {exercises.COMMAND} or {exercises.WEBHOOKS}, or start it by hand."
    if running.clock.rate > exercises.MAX_CLOCK_RATE:
        return f"No tandem watch: it works up to a clock rate of {exercises.MAX_CLOCK_RATE}."
    command = (sys.executable, "-m", "services.cli", "watch", "--dir", str(folder))
    services.start(
        Program(name=WATCH, command=command, environment=dict(os.environ), log=_log(folder, WATCH), beats=True)
    )
    return f"tandem watch pages by {' and '.join(configured)}."


def _base_port(requested: int) -> int:
    if requested == 0:
        return processes.free_base_port()
    used = processes.used_port(requested)
    if used is not None:
        raise CommandFailed(f"port {used} is in use: choose other ports with --base-port", MISUSED)
    return requested


def _certificates(options: Options) -> Path | None:
    """Issues certificates for all services and clients, with --tls. Returns their folder, or None."""
    if not options.tls:
        return None
    folder = options.folder / "certs"
    authority.issue(folder, (*authority.SERVERS, *authority.CLIENTS), authority.LOOPBACK, lifetime=CERTIFICATES_FOR)
    return folder


def _start_nats(
    options: Options, base_port: int, certificates: Path | None, *, nats_supervisor: Supervisor
) -> tuple[NatsServer, Watchdog | None]:
    """The NATS server: an external one from TANDEM_NATS_URL, else one started here, with a watchdog."""
    url = os.environ.get("TANDEM_NATS_URL")
    if url:
        monitor_url = os.environ.get("TANDEM_NATS_MONITOR_URL", "")
        if not monitor_url:
            raise CommandFailed(
                "TANDEM_NATS_URL needs TANDEM_NATS_MONITOR_URL, too (example: http://127.0.0.1:8222)", MISUSED
            )
        return NatsServer(
            url=url,
            monitor_url=monitor_url,
            passwords={},
            certificates=certificates if url.startswith("tls://") else None,
        ), None
    folder = options.folder / NATS
    command, server = nats_server.configure_server(
        folder,
        base_port + processes.NATS_OFFSET,
        base_port + processes.NATS_MONITOR_OFFSET,
        partitions=options.partitions,
        certificates=certificates,
    )
    nats_supervisor.start(
        Program(name=NATS, command=command, environment=dict(os.environ), log=_log(options.folder, NATS))
    )
    return server, Watchdog(nats_supervisor, program=NATS, server=server, folder=folder)


async def _create_streams(server: NatsServer, options: Options) -> LogMetadata:
    clock = MeshClock(options.clock_rate, time.time_ns() // 1_000_000)
    try:
        async with asyncio.timeout(HEALTHY_WITHIN_S), server.bus_as("setup") as connection:
            while True:
                try:
                    return await streams.create(connection, options.partitions, clock, max_bytes=STREAM_BYTES)
                except nats.js.errors.APIError as error:
                    if error.err_code in NO_SPACE:
                        raise CommandFailed(
                            f"{options.folder}: not enough disk space: nats-server reserves {STREAM_BYTES >> 30} GiB per stream",
                            FAILED,
                        ) from None
                    await asyncio.sleep(POLL_S)  # the server is recovering its store
                except nats.errors.Error:
                    await asyncio.sleep(POLL_S)
    except FailedPrecondition as error:
        raise CommandFailed(f"{options.folder}: {error.reason}", MISUSED) from None
    except TimeoutError:
        tail = _last_lines(_log(options.folder, NATS))
        raise CommandFailed(f"nats-server at {server.url} isn't ready after {HEALTHY_WITHIN_S:.0f} s{tail}") from None


def _make_keys(folder: Path) -> None:
    """Makes the keys that several services share, unless they exist."""
    secret_keys.open_private_keys(processes.warning_key(folder))  # the registry reads the public key at its start
    secret_keys.make_key_once(processes.state_key(folder))


def _dev_secret(folder: Path) -> str:
    """The folder's key of development tokens, kept in a file so that tokens survive a restart."""
    path = folder / "dev_secret"
    if not path.exists():
        stored_files.write(path, secrets.token_hex(32).encode())
    return path.read_text()


async def _wait_until_healthy(running: MeshConnection, folder: Path, began_s: float) -> None:
    deadline = time.monotonic() + HEALTHY_WITHIN_S
    async with AsyncExitStack() as stack:
        waiting = {name: await stack.enter_async_context(mesh.channel(running, name)) for name in running.addresses}
        MeshStart(began_s, tuple(waiting)).save(folder)
        while waiting:
            ready = [name for name, channel in waiting.items() if await monitoring.is_serving(channel, within_s=1.0)]
            if ready:
                for name in ready:
                    del waiting[name]
                MeshStart(began_s, tuple(waiting)).save(folder)
            if waiting and time.monotonic() > deadline:
                tails = "".join(f"\n{name}:{_last_lines(_log(folder, name))}" for name in waiting)
                raise CommandFailed(f"not healthy after {HEALTHY_WITHIN_S:.0f} s: {', '.join(waiting)}{tails}", FAILED)
            await asyncio.sleep(POLL_S)


def _log(folder: Path, name: str) -> Path:
    return folder / "logs" / f"{name}.log"


def _last_lines(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "".join(f"\n  {line}" for line in lines[-LOG_LINES:]) or " (its log is empty)"


def _table(addresses: Mapping[str, str]) -> Table:
    table = Table("process", "address")
    for name, address in addresses.items():
        table.add_row(name, address)
    return table
