"""`tandem up`: a whole mesh on this machine, each part a supervised process of its own."""

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

import grpc.aio
import nats.errors
import nats.js.errors
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.table import Table

from services.cli.commands.mesh import certs
from services.cli.commands.mesh import demo as demos
from services.cli.commands.mesh import watch as watches
from services.cli.failure import FAILED, MISUSED, CommandFailed
from services.cli.stack import mesh, nats_server, processes
from services.cli.stack.mesh import DEFAULT_FOLDER, MeshConnection
from services.cli.stack.nats_server import NatsServer
from services.cli.stack.private_files import write_private
from services.cli.stack.supervisor import Program, Supervisor, child_guard, supervisor
from services.cli.stack.watchdog import Watchdog, watching
from services.cli.terminal import SafeConsole, styled
from services.common.clock import MeshClock
from services.common.messaging import streams
from services.common.messaging.permissions import SERVICE
from services.common.messaging.streams import PARTITIONS_MAX, LogMetadata
from services.common.observability import telemetry
from services.common.privacy import sealing
from services.common.rpc.certificates import Files, files_of
from services.common.rpc.errors import FailedPrecondition
from services.common.rpc.identity import CONSOLES
from services.common.storage import durable
from services.geofence import state_keys

NO_ROOM = (10023, 10047)
"""What JetStream answers where a stream's reservation exceeds its quota or the disk."""
STREAM_BYTES = 1 << 30
HEALTHY_WITHIN_S = 30.0
POLL_S = 0.1
LOG_LINES = 5
NATS = "nats"
WATCH = "watch"
CERTIFICATES_FOR = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for."""

    folder: Path
    base_port: int
    partitions: int
    clock_rate: int
    service_area: str
    tls: bool
    demo: bool
    exit: bool


class ServiceAreaOption(StrEnum):
    """Where protected places may lie."""

    KOREA = "korea"
    WORLD = "world"


def up(
    folder: Annotated[Path, typer.Option("--dir", help="Folder for all that the mesh keeps.")] = DEFAULT_FOLDER,
    base_port: Annotated[int, typer.Option(help="First of 54 ports; 0 takes free ones.", min=0, max=65_000)] = 7400,
    partitions: Annotated[int, typer.Option(help="Partitions of the log.", min=1, max=PARTITIONS_MAX)] = 1,
    clock_rate: Annotated[int, typer.Option(help="How many times as fast its clock runs.", min=1, max=1000)] = 1,
    service_area: Annotated[
        ServiceAreaOption,
        typer.Option(
            help="Where protected places may lie; the world for foreign tracks.", envvar="TANDEM_SERVICE_AREA"
        ),
    ] = ServiceAreaOption.KOREA,
    tls: Annotated[bool, typer.Option("--tls", help="Prove everybody by certificate, as off this machine.")] = False,
    demo: Annotated[bool, typer.Option("--demo", help="Play the demo when everything runs.")] = False,
    exit_: Annotated[bool, typer.Option("--exit", help="End after the demo, with its exit code.")] = False,
) -> None:
    """Start the whole mesh and keep it running until Ctrl-C."""
    if exit_ and not demo:
        raise CommandFailed("--exit goes with --demo", MISUSED)
    options = Options(folder.resolve(), base_port, partitions, clock_rate, service_area.value, tls, demo, exit_)
    with mesh.locked(options.folder):
        # Not uvloop: it forks, which gRPC's threads forbid, where the standard loop starts processes by vfork.
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
    os.umask(0o077)  # databases, logs and keys are for this user alone; the services inherit it
    _log(options.folder, "up").parent.mkdir(exist_ok=True)

    def say(line: str) -> None:
        console.print(styled((time.strftime("%H:%M:%S"), "dim"), f"  {line}"))

    async with AsyncExitStack() as stack:
        telemetry.configure("up", stack.enter_context(_log(options.folder, "up").open("a", buffering=1)))
        base_port = _base_port(options.base_port)
        certificates = _certificates(options)
        guard = await stack.enter_async_context(child_guard())
        # Entered first, so ended last: the services still reach the server while they stop.
        store = await stack.enter_async_context(supervisor(guard, say))
        server, watchdog = _start_nats(options, base_port, certificates, store)
        log_meta = await _create_streams(server, options)
        watched = await stack.enter_async_context(watching(watchdog)) if watchdog else asyncio.Future[None]()
        services = await stack.enter_async_context(supervisor(guard, say))
        addresses = processes.addresses(base_port)
        secret = "" if certificates else _dev_secret(options.folder)
        warning_key = processes.warning_key(options.folder)
        sealing.open_private_keys(warning_key)  # before the registry asks for the public one
        state_key = processes.state_key(options.folder)
        if not state_key.exists():
            durable.write_once(state_key, f"{secrets.token_hex(state_keys.KEY_BYTES)}\n".encode())
        shared = {
            "TANDEM_STATE_KEY": str(state_key),
            "TANDEM_NATS_MONITOR_URL": server.monitor_url,
            "TANDEM_DEV_SECRET": secret,
            "TANDEM_SERVICE_AREA": options.service_area,
            "TANDEM_CLOCK_RATE": str(log_meta.clock.rate),
            "TANDEM_CLOCK_ANCHOR_MS": str(log_meta.clock.anchor_ms),
            "TANDEM_WARNING_PUBLIC_KEY": str(sealing.public_file(warning_key)),
        }
        # Where certificates prove callers, whoever has no provider to sign in by could see no page.
        console_of = os.environ.get("TANDEM_CONSOLE_ROLE", "") if os.environ.get("TANDEM_OIDC_ISSUER") else ""
        with_console = not certificates or console_of in CONSOLES
        url = processes.console_url(base_port, tls=certificates is not None) if with_console else ""
        started = (*processes.SERVICES, *([processes.CONSOLE] if with_console else []))

        def running() -> MeshConnection:
            pids = store.pids | services.pids
            return MeshConnection(
                *(addresses, pids, secret, log_meta.clock, server, log_meta.partitions, certificates),
                url,
            )

        for service in started:
            access = {"TANDEM_NATS_URL": server.url_as(service.nats_user)} if service.nats_user else {}
            if certificates:
                own = CONSOLES[console_of] if service is processes.CONSOLE else SERVICE + service.nats_user
                access |= _tls_settings(files_of(certificates, own))
                if service is processes.CONSOLE:
                    pages = files_of(certificates, certs.PAGES)
                    access |= {"TANDEM_HTTP_TLS_CERT": str(pages.cert), "TANDEM_HTTP_TLS_KEY": str(pages.key)}
            services.start(processes.program(service, options.folder, base_port, shared | access))
        try:
            await _wait_until_healthy(running(), options.folder)
        except CommandFailed as failed:
            if options.demo:
                raise
            # What does run must go on: a leg without its sister is better than none.
            console.print(str(failed), style="bold red")

        def save() -> None:
            running().save(options.folder)

        save()
        store.on_change = services.on_change = save
        shown = {processes.CONSOLE.name: url} if with_console else {}
        console.print(_table(addresses | processes.other_addresses(started, base_port) | shown, server))
        say(_watch(running(), options.folder, services))
        code = 0
        if options.demo:
            # Entered last, so ended first: the demo's phone and gateway answer until the mesh stops.
            code = await stack.enter_async_context(demos.played(running(), as_json=False))
        if options.exit:
            return code
        where = f"its console is at {url} ." if with_console else "it has no console."
        console.print(f"The mesh runs; {where} Ctrl-C stops it.")
        await watched
        raise AssertionError("the watchdog ended")


def _watch(running: MeshConnection, folder: Path, services: Supervisor) -> str:
    """Starts the watch over the whole chain where somebody would be woken by it; what it did, in a line."""
    ways = [name for name in (watches.COMMAND, watches.WEBHOOKS) if os.environ.get(name)]
    if not ways:
        return (
            f"No tandem watch: nobody would be woken. Set {watches.COMMAND} or {watches.WEBHOOKS}, or start it by hand."
        )
    if running.clock.rate > watches.MAX_CLOCK_RATE:
        return f"No tandem watch: this mesh runs more than {watches.MAX_CLOCK_RATE} times as fast."
    command = (sys.executable, "-m", "services.cli", "watch", "--dir", str(folder))
    services.start(Program(WATCH, command, dict(os.environ), _log(folder, WATCH), beats=True))
    return f"tandem watch pages by {' and '.join(ways)}."


def _base_port(asked: int) -> int:
    if asked == 0:
        return processes.free_base_port()
    used = processes.used_port(asked)
    if used is not None:
        raise CommandFailed(f"port {used} is in use: choose others with --base-port", MISUSED)
    return asked


def _certificates(options: Options) -> Path | None:
    """New certificates of everybody, by the folder's own authority, where they are asked for."""
    if not options.tls:
        return None
    folder = options.folder / "certs"
    certs.issue(folder, (*certs.SERVERS, *certs.CLIENTS), certs.LOOPBACK, CERTIFICATES_FOR)
    return folder


def _tls_settings(files: Files) -> dict[str, str]:
    names = ("TANDEM_TLS_CERT", "TANDEM_TLS_KEY", "TANDEM_TLS_CA")
    return {name: str(path) for name, path in zip(names, files, strict=True)}


def _start_nats(
    options: Options, base_port: int, certificates: Path | None, store: Supervisor
) -> tuple[NatsServer, Watchdog | None]:
    """The server: one that the environment names, else one started here, which is watched."""
    url = os.environ.get("TANDEM_NATS_URL")
    if url:
        monitor_url = os.environ.get("TANDEM_NATS_MONITOR_URL", "")
        if not monitor_url:
            raise CommandFailed("TANDEM_NATS_URL goes with TANDEM_NATS_MONITOR_URL", MISUSED)
        return NatsServer(url, monitor_url, {}, certificates if url.startswith("tls://") else None), None
    folder = options.folder / NATS
    command, server = nats_server.configure(
        folder,
        base_port + processes.NATS_OFFSET,
        base_port + processes.NATS_MONITOR_OFFSET,
        options.partitions,
        certificates=certificates,
    )
    store.start(Program(NATS, command, dict(os.environ), _log(options.folder, NATS)))
    return server, Watchdog(store, NATS, server, folder)


async def _create_streams(server: NatsServer, options: Options) -> LogMetadata:
    clock = MeshClock(options.clock_rate, time.time_ns() // 1_000_000)
    try:
        async with asyncio.timeout(HEALTHY_WITHIN_S), server.bus_as("setup") as connection:
            while True:
                try:
                    return await streams.create(connection, options.partitions, clock, max_bytes=STREAM_BYTES)
                except nats.js.errors.APIError as error:
                    if error.err_code in NO_ROOM:
                        raise CommandFailed(
                            f"{options.folder}: nats-server reserves {STREAM_BYTES >> 30} GiB for each stream: not enough disk",
                            FAILED,
                        ) from None
                    await asyncio.sleep(POLL_S)  # it recovers its store
                except nats.errors.Error:
                    await asyncio.sleep(POLL_S)
    except FailedPrecondition as error:
        raise CommandFailed(f"{options.folder}: {error.reason}", MISUSED) from None
    except TimeoutError:
        tail = _last_lines(_log(options.folder, NATS))
        raise CommandFailed(f"nats-server at {server.url} isn't ready after {HEALTHY_WITHIN_S:.0f} s{tail}") from None


def _dev_secret(folder: Path) -> str:
    """The folder's key of the development tokens; it stays the same, so that tokens outlive a restart."""
    path = folder / "dev_secret"
    if not path.exists():
        write_private(path, secrets.token_hex(32))
    return path.read_text()


async def _wait_until_healthy(running: MeshConnection, folder: Path) -> None:
    deadline = time.monotonic() + HEALTHY_WITHIN_S
    async with AsyncExitStack() as stack:
        waiting = {
            name: health_pb2_grpc.HealthStub(await stack.enter_async_context(mesh.channel(running, name)))
            for name in running.addresses
        }
        while waiting:
            for name in [name for name, stub in waiting.items() if await _is_serving(stub)]:
                del waiting[name]
            if waiting and time.monotonic() > deadline:
                tails = "".join(f"\n{name}:{_last_lines(_log(folder, name))}" for name in waiting)
                raise CommandFailed(f"not healthy after {HEALTHY_WITHIN_S:.0f} s: {', '.join(waiting)}{tails}", FAILED)
            await asyncio.sleep(POLL_S)


async def _is_serving(stub: health_pb2_grpc.HealthStub) -> bool:
    try:
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=1.0)  # type: ignore[attr-defined]
    except grpc.aio.AioRpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _log(folder: Path, name: str) -> Path:
    return folder / "logs" / f"{name}.log"


def _last_lines(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "".join(f"\n  {line}" for line in lines[-LOG_LINES:]) or " (it has logged nothing)"


def _table(addresses: Mapping[str, str], server: NatsServer) -> Table:
    table = Table("process", "address")
    for name, address in addresses.items():
        table.add_row(name, address)
    table.add_row("nats-server", server.url)
    table.add_row("its monitor", server.monitor_url)
    return table
