"""Connect to a running mesh: reads `mesh.json`, which `tandem up` keeps current, and opens the stubs of its services."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import grpc.aio

from services.client.calls import PATIENCE_S
from services.common.certificates import Files, files_of
from services.common.clock import MeshClock
from services.common.errors import RetryableError
from services.common.failure import FAILED, MISUSED, CommandFailed, trouble
from services.common.messaging import bus as buses
from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.common.messaging.permissions import SERVICE
from services.common.rpc import client, server
from services.common.rpc.server import Metadata
from services.common.storage import stored_files
from tandem.dispatch.v1.dispatch_pb2_grpc import DispatchServiceStub
from tandem.dispatch.v1.evidence_pb2_grpc import EvidenceServiceStub
from tandem.dispatch.v1.following_pb2_grpc import FollowingServiceStub
from tandem.dispatch.v1.handover_pb2_grpc import HandoverServiceStub
from tandem.dispatch.v1.notes_pb2_grpc import NoteServiceStub
from tandem.dispatch.v1.order_burden_pb2_grpc import OrderBurdenServiceStub
from tandem.dispatch.v1.phone_state_pb2_grpc import PhoneStateServiceStub
from tandem.dispatch.v1.roster_pb2_grpc import RosterServiceStub
from tandem.dispatch.v1.statistics_pb2_grpc import StatisticsServiceStub
from tandem.dispatch.v1.unit_duty_pb2_grpc import UnitDutyServiceStub
from tandem.geofence.v1.device_state_pb2_grpc import DeviceStateServiceStub
from tandem.geofence.v1.geofence_pb2_grpc import GeofenceServiceStub
from tandem.ingest.v1.battery_pb2_grpc import BatteryServiceStub
from tandem.ingest.v1.ingest_pb2_grpc import CommandServiceStub, IngestServiceStub
from tandem.registry.v1.cctv_pb2_grpc import CctvServiceStub
from tandem.registry.v1.device_token_pb2_grpc import DeviceTokenServiceStub
from tandem.registry.v1.disclosure_pb2_grpc import DisclosureServiceStub
from tandem.registry.v1.enrolment_pb2_grpc import EnrolmentServiceStub
from tandem.registry.v1.exercise_pb2_grpc import ExerciseServiceStub
from tandem.registry.v1.finding_pb2_grpc import FindingServiceStub
from tandem.registry.v1.match_review_pb2_grpc import MatchReviewServiceStub
from tandem.registry.v1.notice_pb2_grpc import NoticeServiceStub
from tandem.registry.v1.order_extension_pb2_grpc import OrderExtensionServiceStub
from tandem.registry.v1.parties_pb2_grpc import PartyServiceStub
from tandem.registry.v1.presence_unit_pb2_grpc import PresenceUnitServiceStub
from tandem.registry.v1.record_search_pb2_grpc import RecordSearchServiceStub
from tandem.registry.v1.registry_pb2_grpc import RegistryServiceStub
from tandem.registry.v1.tag_record_pb2_grpc import TagRecordServiceStub
from tandem.registry.v1.trace_pb2_grpc import TraceServiceStub

DEFAULT_FOLDER = Path(".tandem")
_FILE = "mesh.json"
_START_FILE = "start.json"
_LOCK = "lock"
_LOCK_PATIENCE_S = 0.5

OPERATOR = "spiffe://tandem/operator/demo"
"""Default caller of commands."""


@dataclass(frozen=True, slots=True)
class NatsServer:
    """A NATS server and its users. An external server may have neither passwords nor certificates: all users share its URL."""

    url: str
    """URL without user and password."""
    monitor_url: str
    passwords: Mapping[str, str]
    """Password of each user; empty if users don't authenticate by password."""
    certificates: Path | None
    """Folder of all certificates; None if users don't authenticate by certificate."""

    def url_as(self, user: str) -> str:
        """The URL for a user, with the password if it has one."""
        return self.url.replace("://", f"://{user}:{self.passwords[user]}@", 1) if self.passwords else self.url

    def tls_as(self, user: str) -> Files | None:
        """The certificate files of a user; None if users don't authenticate by certificate."""
        return files_of(self.certificates, SERVICE + user) if self.certificates else None

    def bus_as(self, user: str) -> AbstractAsyncContextManager[Bus]:
        """A connection as a user."""
        return buses.connect(self.url_as(user), user, self.tls_as(user))

    @asynccontextmanager
    async def bus_for_command(self, user: str) -> AsyncIterator[tuple[Bus, asyncio.Timeout]]:
        """A connection as a user, and the time limit of PATIENCE_S, which a command lifts for what takes long.

        Raises CommandFailed if the time is over, and in the place of a RetryableError.
        """
        try:
            async with asyncio.timeout(PATIENCE_S) as patience, self.bus_as(user) as bus:
                yield bus, patience
        except TimeoutError:
            raise CommandFailed(f"no answer from {self.url} for {PATIENCE_S:.0f} s") from None
        except RetryableError as error:
            raise CommandFailed(error.reason) from None


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
        stored_files.write(folder / _FILE, f"{json.dumps(content, indent=2)}\n".encode())
        (folder / _START_FILE).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class MeshStart:
    """How far the start of a mesh is: `tandem up` keeps it current for the commands that need the mesh."""

    began_s: float
    """When the start began, seconds since 1970 UTC by the machine's clock."""
    awaited: tuple[str, ...]
    """Names of the processes that aren't ready yet."""

    def save(self, folder: Path) -> None:
        """Writes start.json atomically."""
        content = {"began_s": self.began_s, "awaited": list(self.awaited)}
        stored_files.write(folder / _START_FILE, json.dumps(content).encode())

    def __str__(self) -> str:
        return f"for {max(0.0, time.time() - self.began_s):.0f} s, and waits for {', '.join(self.awaited)}"


def load(folder: Path) -> MeshConnection:
    """The mesh that runs on `folder`. Raises CommandFailed if none runs there, or if it is still starting."""
    try:
        content = json.loads((folder / _FILE).read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise _no_connection(folder) from None
    except ValueError:
        raise CommandFailed(
            f"{folder / _FILE} is damaged: stop the mesh with `tandem down{dir_option(folder)}` and start it", FAILED
        ) from None
    if owner(folder) is None:
        raise _no_connection(folder)
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


def _no_connection(folder: Path) -> CommandFailed:
    """Why a command can't reach a mesh on `folder`: it is starting, it runs on another folder, or there is none."""
    if owner(folder) is not None:
        try:
            start = json.loads((folder / _START_FILE).read_text())
            progress = f" {MeshStart(start['began_s'], tuple(start['awaited']))}"
        except FileNotFoundError:  # the first moment of the start, or the last
            progress = ""
        return CommandFailed(f"the mesh on {folder} is starting{progress}: repeat the command in some seconds", FAILED)
    if others := other_folders(folder):
        return CommandFailed(f"no mesh runs on {folder}; {running_on(others)}", MISUSED)
    return CommandFailed(f"no mesh runs on {folder}: start one with `tandem up{dir_option(folder)}`", MISUSED)


def dir_option(folder: Path) -> str:
    """The option that names a mesh's folder in a command, with a space before it; empty for the default folder."""
    return "" if folder.resolve() == DEFAULT_FOLDER.resolve() else f" --dir {shlex.quote(str(folder))}"


# ── which folders have a mesh ────────────────────────────────────────────────────────────────────────────────────────


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
        _remove_state(folder)
        try:
            with _listed(folder):
                yield
        finally:
            _remove_state(folder)


def _remove_state(folder: Path) -> None:
    (folder / _FILE).unlink(missing_ok=True)
    (folder / _START_FILE).unlink(missing_ok=True)


def owner(folder: Path) -> int | None:
    """Process id of the `tandem up` that runs on a folder, from the first moment of its start; None if none runs there."""
    try:
        with (folder / _LOCK).open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(lock.read() or 0)  # empty for the instant in which `up` writes it
            return None
    except (FileNotFoundError, NotADirectoryError):
        return None


def _list_folder() -> Path:
    """Folder with one file for each mesh that this user has started: its name is a hash of the mesh's folder, its text the folder."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "tandem" / "meshes"


@contextmanager
def _listed(folder: Path) -> Iterator[None]:
    """Lists the mesh among those of this user, so that a command in another folder can name it."""
    entry: Path | None = None
    try:
        path = os.fsencode(folder.resolve())
        entry = _list_folder() / hashlib.sha256(path).hexdigest()[:16]
        entry.parent.mkdir(parents=True, exist_ok=True)
        stored_files.write(entry, path)
    except OSError as error:
        print(f"commands in other folders won't find this mesh: {error.filename}: {trouble(error)}", file=sys.stderr)
    except RuntimeError as error:  # the user has no home folder
        print(f"commands in other folders won't find this mesh: {error}", file=sys.stderr)
    try:
        yield
    finally:
        if entry:
            entry.unlink(missing_ok=True)


def other_folders(folder: Path) -> list[Path]:
    """Other folders on which a mesh of this user runs; none if their list can't be read, which `tandem up` has said."""
    try:
        entries = [entry for entry in sorted(_list_folder().iterdir()) if not entry.name.startswith(".")]
        listed = [Path(os.fsdecode(entry.read_bytes())) for entry in entries]
    except (OSError, RuntimeError):
        return []
    # A mesh that was killed has left its entry, and runs no more.
    return [path for path in listed if path != folder.resolve() and owner(path) is not None]


def running_on(folders: Sequence[Path]) -> str:
    """The part of a message that names folders on which a mesh runs, with the option for the first of them."""
    verb = "one runs" if len(folders) == 1 else f"{len(folders)} run"
    return f"{verb} on {', '.join(map(str, folders))}: add `{dir_option(folders[0]).strip()}`"


# ── clients ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class LegStubs:
    """Stubs of one leg."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.dispatch = DispatchServiceStub(channel)
        self.evidence = EvidenceServiceStub(channel)
        self.following = FollowingServiceStub(channel)
        self.handover = HandoverServiceStub(channel)
        self.notes = NoteServiceStub(channel)
        self.order_burden = OrderBurdenServiceStub(channel)
        self.phone_states = PhoneStateServiceStub(channel)
        self.roster = RosterServiceStub(channel)
        self.statistics = StatisticsServiceStub(channel)
        self.units = UnitDutyServiceStub(channel)


class Stubs:
    """Stubs of the services of a mesh."""

    def __init__(
        self,
        registry: grpc.aio.Channel,
        ingest: grpc.aio.Channel,
        geofence: grpc.aio.Channel,
        *,
        legs: Mapping[str, grpc.aio.Channel],
    ) -> None:
        """`geofence` is a channel to any evaluator that answers, `legs` are those of the legs by name."""
        self.registry = RegistryServiceStub(registry)
        self.cctv = CctvServiceStub(registry)
        self.device_tokens = DeviceTokenServiceStub(registry)
        self.disclosures = DisclosureServiceStub(registry)
        self.enrolments = EnrolmentServiceStub(registry)
        self.exercises = ExerciseServiceStub(registry)
        self.findings = FindingServiceStub(registry)
        self.match_reviews = MatchReviewServiceStub(registry)
        self.notices = NoticeServiceStub(registry)
        self.order_extensions = OrderExtensionServiceStub(registry)
        self.order_people = PartyServiceStub(registry)
        self.presence_units = PresenceUnitServiceStub(registry)
        self.record_search = RecordSearchServiceStub(registry)
        self.tag_records = TagRecordServiceStub(registry)
        self.traces = TraceServiceStub(registry)
        self.ingest = IngestServiceStub(ingest)
        self.batteries = BatteryServiceStub(ingest)
        self.commands = CommandServiceStub(ingest)
        self.geofence = GeofenceServiceStub(geofence)
        self.device_states = DeviceStateServiceStub(geofence)
        self.legs = {leg: LegStubs(channel) for leg, channel in legs.items()}
        """Stubs of the legs, by leg."""


class Clients(Stubs):
    """gRPC stubs of all services of a mesh, and the identities to call them with."""

    def __init__(
        self,
        mesh: MeshConnection,
        registry: grpc.aio.Channel,
        ingest: grpc.aio.Channel,
        *,
        geofence: grpc.aio.Channel,
        legs: Mapping[str, grpc.aio.Channel],
    ) -> None:
        super().__init__(registry, ingest, geofence, legs=legs)
        self.mesh = mesh
        self.clock = mesh.clock

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
        yield Clients(
            mesh,
            await opened("registry"),
            await opened("ingest"),
            geofence=await opened(*evaluators),
            legs={leg: await opened(f"dispatch-{leg}") for leg in flow.LEGS},
        )
