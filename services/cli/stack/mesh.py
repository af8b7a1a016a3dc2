"""Connect to a running mesh: reads `mesh.json`, which `tandem up` keeps current, and opens clients for its services."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import grpc.aio

from services.cli.failure import FAILED, MISUSED, CommandFailed, trouble
from services.cli.stack.nats_server import NatsServer
from services.common.clock import MeshClock
from services.common.messaging import flow
from services.common.rpc import client, server
from services.common.rpc.certificates import Files, files_of
from services.common.storage import durable
from tandem.dispatch.v1.dispatch_pb2_grpc import DispatchServiceStub
from tandem.geofence.v1.geofence_pb2_grpc import GeofenceServiceStub
from tandem.ingest.v1.ingest_pb2_grpc import CommandServiceStub, IngestServiceStub
from tandem.registry.v1.cctv_pb2_grpc import CctvServiceStub
from tandem.registry.v1.device_token_pb2_grpc import DeviceTokenServiceStub
from tandem.registry.v1.disclosure_pb2_grpc import DisclosureServiceStub
from tandem.registry.v1.exercise_pb2_grpc import ExerciseServiceStub
from tandem.registry.v1.presence_unit_pb2_grpc import PresenceUnitServiceStub
from tandem.registry.v1.registry_pb2_grpc import RegistryServiceStub
from tandem.registry.v1.tag_record_pb2_grpc import TagRecordServiceStub
from tandem.registry.v1.trace_pb2_grpc import TraceServiceStub

DEFAULT_FOLDER = Path(".tandem")
_FILE = "mesh.json"
_LOCK = "lock"
_LOCK_PATIENCE_S = 0.5

OPERATOR = "spiffe://tandem/operator/demo"
"""Default caller of commands."""

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class MeshConnection:
    """Addresses, keys and processes of a running mesh."""

    addresses: Mapping[str, str]
    """host:port of each service process, by process name."""
    pids: Mapping[str, int]
    """Process id of each service process, and of `nats` if `up` started it."""
    dev_secret: str
    """Key that signs development tokens."""
    clock: MeshClock
    nats: NatsServer
    partitions: int
    certificates: Path | None
    """Folder of all certificates; None if callers authenticate by development tokens."""
    console_url: str
    """URL of the console for a browser; empty if there is no console."""
    field_url: str = ""
    """URL of the protected persons' app; empty for a mesh that `tandem up` didn't start."""
    metrics_urls: Mapping[str, str] = field(default_factory=dict)
    """URL of each process's metrics and readiness, by process name; empty for a mesh that `tandem up` didn't start."""

    def save(self, folder: Path) -> None:
        """Writes mesh.json atomically, readable by its owner only."""
        content = {
            "addresses": dict(self.addresses),
            "pids": dict(self.pids),
            "dev_secret": self.dev_secret,
            "clock_rate": self.clock.rate,
            "clock_anchor_ms": self.clock.anchor_ms,
            "nats_url": self.nats.url,
            "nats_monitor_url": self.nats.monitor_url,
            "nats_passwords": dict(self.nats.passwords),
            "certificates": str(self.certificates or ""),
            "partitions": self.partitions,
            "console_url": self.console_url,
            "field_url": self.field_url,
            "metrics_urls": dict(self.metrics_urls),
        }
        durable.write(folder / _FILE, f"{json.dumps(content, indent=2)}\n".encode())


def load(folder: Path) -> MeshConnection:
    """The mesh that runs on `folder`. Raises CommandFailed if none runs there."""
    missing = CommandFailed(f"no mesh runs on {folder}: start one with `tandem up`", MISUSED)
    try:
        content = json.loads((folder / _FILE).read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise missing from None
    except ValueError:
        raise CommandFailed(
            f"{folder / _FILE} is damaged: stop the mesh with `tandem down` and start it", FAILED
        ) from None
    if owner(folder) is None:
        raise missing
    certificates = Path(content["certificates"]) if content["certificates"] else None
    return MeshConnection(
        addresses=content["addresses"],
        pids=content["pids"],
        dev_secret=content["dev_secret"],
        clock=MeshClock(content["clock_rate"], content["clock_anchor_ms"]),
        nats=NatsServer(
            url=content["nats_url"],
            monitor_url=content["nats_monitor_url"],
            passwords=content["nats_passwords"],
            certificates=certificates if content["nats_url"].startswith("tls://") else None,
        ),
        certificates=certificates,
        partitions=content["partitions"],
        console_url=content["console_url"],
        field_url=content["field_url"],
        metrics_urls=content["metrics_urls"],
    )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks the folder for one mesh, and removes mesh.json at the start and the end. Raises CommandFailed if it is locked."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandFailed(f"--dir: {folder}: {trouble(error)}", MISUSED) from None
    give_up_at = time.monotonic() + _LOCK_PATIENCE_S
    with (folder / _LOCK).open("a+") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # Commands that check whether a mesh runs hold the lock for an instant.
                if time.monotonic() > give_up_at:
                    raise CommandFailed(f"a mesh runs on {folder} already", MISUSED) from None
                time.sleep(0.05)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        (folder / _FILE).unlink(missing_ok=True)
        try:
            yield
        finally:
            (folder / _FILE).unlink(missing_ok=True)


def owner(folder: Path) -> int | None:
    """Process id of the `tandem up` that runs on a folder, from the first moment of its start; None if none runs there."""
    try:
        with (folder / _LOCK).open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(lock.read() or 0)  # empty for the instant in which `up` writes it
            return None
    except FileNotFoundError:
        return None


# ── clients ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Clients:
    """gRPC stubs of all services of a mesh, and the identities to call them with."""

    def __init__(
        self,
        mesh: MeshConnection,
        registry: RegistryServiceStub,
        device_tokens: DeviceTokenServiceStub,
        *,
        tag_records: TagRecordServiceStub,
        cctv: CctvServiceStub,
        presence_units: PresenceUnitServiceStub,
        exercises: ExerciseServiceStub,
        disclosures: DisclosureServiceStub,
        traces: TraceServiceStub,
        ingest: IngestServiceStub,
        commands: CommandServiceStub,
        geofence: GeofenceServiceStub,
        dispatch: Mapping[str, DispatchServiceStub],
    ) -> None:
        self.mesh = mesh
        self.clock = mesh.clock
        self.registry = registry
        self.presence_units = presence_units
        self.device_tokens = device_tokens
        self.tag_records = tag_records
        self.cctv = cctv
        self.exercises = exercises
        self.disclosures = disclosures
        self.traces = traces
        self.ingest = ingest
        self.commands = commands
        self.geofence = geofence
        """Stub of any evaluator that answers."""
        self.dispatch = dispatch
        """Stubs of the legs, by leg."""

    def identity(self, spiffe_id: str) -> Metadata:
        """Call metadata that authenticates a caller."""
        return identity(self.mesh, spiffe_id)


def identity(mesh: MeshConnection, spiffe_id: str) -> Metadata:
    """Call metadata that authenticates a caller on a mesh."""
    return client.as_identity(spiffe_id) if mesh.certificates else server.bearer(spiffe_id, mesh.dev_secret)


def channel(mesh: MeshConnection, *names: str) -> AbstractAsyncContextManager[grpc.aio.Channel]:
    """A gRPC channel to any of these processes that answers."""
    target = target_of([mesh.addresses[name] for name in names])
    if mesh.certificates:
        return client.channel(target, partial(_files, mesh.certificates), OPERATOR, server_name="localhost")
    return server.channel(target)


def target_of(addresses: Sequence[str]) -> str:
    """The gRPC target of these `host:port` addresses.

    gRPC takes literal addresses as they are, and keeps resolving a single name. gRPC can't resolve several names, so each
    is resolved here once. Raises CommandFailed if a name can't be resolved.
    """
    distinct = tuple(dict.fromkeys(addresses))
    families = {_family_of(address) for address in distinct}
    if families == {4}:
        return f"ipv4:{','.join(distinct)}"
    if families == {6}:
        return f"ipv6:{','.join(distinct)}"
    if len(distinct) == 1:
        return f"dns:///{distinct[0]}"
    return target_of([resolved for address in distinct for resolved in _resolved(address)])


def _family_of(address: str) -> int | None:
    """IP version of a literal `host:port` address, 4 or 6; None for a name."""
    try:
        return ip_address(address.rpartition(":")[0].strip("[]")).version
    except ValueError:
        return None


def _resolved(address: str) -> list[str]:
    """The IPv4 addresses of a `host:port`."""
    host, _, port = address.rpartition(":")
    try:
        entries = socket.getaddrinfo(host.strip("[]"), port, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise CommandFailed(f"{host} isn't the name of a machine: {error.strerror}", FAILED) from None
    return [f"{address[0]!s}:{address[1]!s}" for *_, address in entries]


def _files(folder: Path, spiffe_id: str) -> Files:
    files = files_of(folder, spiffe_id)
    if not files.cert.exists():
        raise CommandFailed(
            f"{folder} has no certificate of {spiffe_id}: run `tandem certs --dir {folder} {spiffe_id}`", MISUSED
        )
    return files


@asynccontextmanager
async def connect(mesh: MeshConnection) -> AsyncIterator[Clients]:
    """Opens clients for all services of a mesh."""
    async with AsyncExitStack() as stack:

        async def opened(*names: str) -> grpc.aio.Channel:
            return await stack.enter_async_context(channel(mesh, *names))

        evaluators = sorted(name for name in mesh.addresses if name.startswith("geofence"))
        registry, ingest = await opened("registry"), await opened("ingest")
        yield Clients(
            mesh=mesh,
            registry=RegistryServiceStub(registry),
            device_tokens=DeviceTokenServiceStub(registry),
            tag_records=TagRecordServiceStub(registry),
            cctv=CctvServiceStub(registry),
            presence_units=PresenceUnitServiceStub(registry),
            exercises=ExerciseServiceStub(registry),
            disclosures=DisclosureServiceStub(registry),
            traces=TraceServiceStub(registry),
            ingest=IngestServiceStub(ingest),
            commands=CommandServiceStub(ingest),
            geofence=GeofenceServiceStub(await opened(*evaluators)),
            dispatch={leg: DispatchServiceStub(await opened(f"dispatch-{leg}")) for leg in flow.LEGS},
        )
