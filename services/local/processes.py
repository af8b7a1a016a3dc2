"""The processes that `tandem up` starts on this machine: their table, their settings, and where they are reached."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.client.mesh import MeshConnection, NatsServer
from services.common.certificates import Files, files_of
from services.common.messaging import flow
from services.common.messaging.permissions import SERVICE
from services.common.messaging.streams import LogMetadata
from services.common.privacy import secret_keys
from services.common.rpc.identity import CONSOLES, FIELD
from services.local import authority
from services.local.supervisor import Program

EVALUATORS = 2
NATS_OFFSET = 22
NATS_MONITOR_OFFSET = 23
SHARING_NICENESS, RECORD_NICENESS = 3, 5
"""Niceness of the processes that show incidents, and of those that record them. nats-server, ingest, evaluators and legs have 0. A
process needs a right for less than 0, so the others give way. 3 is half and 5 a third of the weight of 0: with less, a busy machine
would hardly start them."""


@dataclass(frozen=True, slots=True)
class Service:
    """A process of a mesh, with its ports and settings."""

    name: str
    package: str
    """Package that the process runs, as `python -m services.<package>`."""
    nats_user: str
    """The process's user on the NATS server; empty if the process doesn't use NATS."""
    offset: int
    """The process's port, as an offset from the mesh's base port."""
    arguments: tuple[str, ...] = ()
    """Command-line arguments after the package."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that differ between processes of one package."""
    more_ports: Mapping[str, int] = field(default_factory=dict)
    """Offsets of further ports, by the environment variable that sets each."""
    niceness: int = 0
    """See Program.niceness. 0 on the way from a report to the offers and the warning."""


SERVICES = (
    Service(
        name="registry",
        package="registry",
        nats_user="registry",
        offset=1,
        more_ports={"TANDEM_METRICS_PORT": 41},
        niceness=RECORD_NICENESS,
    ),
    Service(
        name="ingest",
        package="ingest",
        nats_user="ingest",
        offset=2,
        more_ports={"TANDEM_HTTP_PORT": 32, "TANDEM_FIELD_PORT": 33, "TANDEM_METRICS_PORT": 42},
    ),
    Service(
        name="geofence-0",
        package="geofence",
        nats_user="geofence",
        offset=3,
        settings={"TANDEM_REPLICA": "0", "TANDEM_REPLICAS": str(EVALUATORS)},
        more_ports={"TANDEM_METRICS_PORT": 43},
    ),
    Service(
        name="geofence-1",
        package="geofence",
        nats_user="geofence",
        offset=13,
        settings={"TANDEM_REPLICA": "1", "TANDEM_REPLICAS": str(EVALUATORS)},
        more_ports={"TANDEM_METRICS_PORT": 53},
    ),
    Service(
        name="dispatch-probation",
        package="dispatch",
        nats_user="dispatch-probation",
        offset=4,
        arguments=("--leg", "probation"),
        more_ports={"TANDEM_METRICS_PORT": 44},
    ),
    Service(
        name="dispatch-police",
        package="dispatch",
        nats_user="dispatch-police",
        offset=5,
        arguments=("--leg", "police"),
        more_ports={"TANDEM_METRICS_PORT": 45},
    ),
    Service(
        name="dispatch-warning",
        package="dispatch",
        nats_user="dispatch-warning",
        offset=6,
        arguments=("--leg", "warning"),
        more_ports={"TANDEM_METRICS_PORT": 46},
    ),
)

CONSOLE_PROCESS = Service(
    name="console",
    package="console",
    nats_user="",
    offset=8,
    more_ports={"TANDEM_METRICS_PORT": 48},
    niceness=SHARING_NICENESS,
)
"""The console: serves pages by HTTP, and is a client of all other services."""

FIELD_PROCESS = Service(
    name="field",
    package="field",
    nats_user="",
    offset=9,
    more_ports={"TANDEM_METRICS_PORT": 49},
)
"""The app of protected persons: it faces their phones, and is a client of the registry, ingest and the warning leg."""

_OFFSETS = (
    *(
        offset
        for service in (*SERVICES, CONSOLE_PROCESS, FIELD_PROCESS)
        for offset in (service.offset, *service.more_ports.values())
    ),
    NATS_OFFSET,
    NATS_MONITOR_OFFSET,
)


def addresses(base_port: int) -> dict[str, str]:
    """host:port of each service of a mesh, by process name."""
    return {service.name: f"127.0.0.1:{base_port + service.offset}" for service in SERVICES}


def other_addresses(services: Iterable[Service], base_port: int) -> dict[str, str]:
    """URL of each further port of these services, by process name and purpose."""
    names = {"TANDEM_HTTP_PORT": "phones", "TANDEM_FIELD_PORT": "field", "TANDEM_METRICS_PORT": "metrics"}
    return {
        f"{service.name}: {names[setting]}": f"http://127.0.0.1:{base_port + offset}"
        for service in services
        for setting, offset in service.more_ports.items()
    }


def warning_key(folder: Path) -> Path:
    """Path of the warning leg's private key."""
    return folder / "data" / "dispatch-warning" / "warning.key"


def state_key(folder: Path) -> Path:
    """Path of the key for the evaluators' checkpoints and digests."""
    return folder / "state.key"


def program(service: Service, folder: Path, base_port: int, *, given: Mapping[str, str]) -> Program:
    """The program of a service. `given` are environment variables that don't follow from the table."""
    settings = {
        "TANDEM_HOST": "127.0.0.1",
        **(_neighbours(base_port) if service.package == "dispatch" else {}),
        **({**_all(base_port), "TANDEM_MESH_FOLDER": str(folder.absolute())} if service is CONSOLE_PROCESS else {}),
        **(_of_field(base_port, tls="TANDEM_TLS_CERT" in given) if service is FIELD_PROCESS else {}),
        "TANDEM_PORT": str(base_port + service.offset),
        **{name: str(base_port + offset) for name, offset in service.more_ports.items()},
        "TANDEM_DATA_DIR": str(folder / "data" / service.name),
    }
    return Program(
        name=service.name,
        command=(sys.executable, "-m", f"services.{service.package}", *service.arguments),
        environment={**os.environ, **given, **service.settings, **settings},
        log=folder / "logs" / f"{service.name}.log",
        niceness=service.niceness,
        beats=True,
    )


def _neighbours(base_port: int) -> dict[str, str]:
    """Addresses for a leg: the evaluators, which know its targets' positions, ingest, which commands the tags, and the registry, which
    knows the match reviews that nobody decided."""
    address_of = addresses(base_port)
    evaluators = ",".join(address for name, address in address_of.items() if name.startswith("geofence"))
    return {
        "TANDEM_GEOFENCE": f"ipv4:{evaluators}",
        "TANDEM_INGEST": f"ipv4:{address_of['ingest']}",
        "TANDEM_REGISTRY": f"ipv4:{address_of['registry']}",
    }


def _all(base_port: int) -> dict[str, str]:
    """Addresses of all services that the console calls."""
    address_of = addresses(base_port)
    legs = {
        f"TANDEM_DISPATCH_{leg.upper()}": f"ipv4:{address_of[f'dispatch-{leg}']}" for leg in ("probation", "police")
    }
    return {**_neighbours(base_port), **legs}


def _of_field(base_port: int, tls: bool) -> dict[str, str]:
    """Addresses of the services that field calls."""
    address_of = addresses(base_port)
    ingest = next(service.more_ports["TANDEM_FIELD_PORT"] for service in SERVICES if service.name == "ingest")
    return {
        "TANDEM_REGISTRY": f"ipv4:{address_of['registry']}",
        **{f"TANDEM_DISPATCH_{leg.upper()}": f"ipv4:{address_of[f'dispatch-{leg}']}" for leg in flow.LEGS},
        "TANDEM_GEOFENCE": _neighbours(base_port)["TANDEM_GEOFENCE"],
        "TANDEM_INGEST_PHONES": f"{'https' if tls else 'http'}://127.0.0.1:{base_port + ingest}",
    }


def used_port(base_port: int) -> int | None:
    """The first port of the mesh that is in use, or None."""
    for offset in _OFFSETS:
        with socket.socket() as probe:
            # As for the services, a port whose last connections are still closing counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", base_port + offset))
            except OSError:
                return base_port + offset
    return None


def free_base_port() -> int:
    """A base port such that all ports of a mesh are free.

    It lies below the range of ephemeral ports, so that no outgoing connection occupies the port of a service during its restart.
    """
    while True:
        base_port = 15_000 + 100 * secrets.randbelow(150)
        if used_port(base_port) is None:
            return base_port


@dataclass(frozen=True, slots=True)
class MeshPlan:
    """The processes of one mesh beside the NATS server."""

    folder: Path
    base_port: int
    service_area: str
    dev_secret: str
    """Key that signs development tokens; empty if callers authenticate by certificate."""
    certificates: Path | None
    """Folder of all certificates; None if callers authenticate by development tokens."""
    console_role: str
    """With certificates: role that the console serves; empty if there is no identity provider to sign in with."""
    server: NatsServer
    log_meta: LogMetadata

    @property
    def has_console(self) -> bool:
        """Whether the console is started. If callers authenticate by certificate, nobody can sign in without an identity provider."""
        return not self.certificates or self.console_role in CONSOLES

    @property
    def services(self) -> tuple[Service, ...]:
        """The services to start, in order."""
        console = (CONSOLE_PROCESS,) if self.has_console else ()
        return (*SERVICES, FIELD_PROCESS, *console)

    @property
    def console_url(self) -> str:
        """URL of the console; empty if there is none."""
        return self._page_url(CONSOLE_PROCESS) if self.has_console else ""

    @property
    def field_url(self) -> str:
        """URL of the protected persons' app."""
        return self._page_url(FIELD_PROCESS)

    def _page_url(self, service: Service) -> str:
        return f"{'https' if self.certificates else 'http'}://127.0.0.1:{self.base_port + service.offset}"

    def programs(self) -> list[Program]:
        """The programs of all services."""
        return [
            program(
                service, self.folder, self.base_port, given=self._shared_settings() | self._access_settings(service)
            )
            for service in self.services
        ]

    def connection(self, pids: Mapping[str, int]) -> MeshConnection:
        """The running mesh with these process ids, for mesh.json."""
        return MeshConnection(
            addresses=addresses(self.base_port),
            pids=pids,
            dev_secret=self.dev_secret,
            clock=self.log_meta.clock,
            nats=self.server,
            partitions=self.log_meta.partitions,
            certificates=self.certificates,
            console_url=self.console_url,
            field_url=self.field_url,
            metrics_urls={
                service.name: f"http://127.0.0.1:{self.base_port + service.more_ports['TANDEM_METRICS_PORT']}"
                for service in self.services
            },
        )

    def shown_addresses(self) -> dict[str, str]:
        """Address of each port of the mesh, by process and purpose."""
        return {
            **addresses(self.base_port),
            **other_addresses(self.services, self.base_port),
            **({CONSOLE_PROCESS.name: self.console_url} if self.has_console else {}),
            FIELD_PROCESS.name: self.field_url,
            "nats-server": self.server.url,
            "nats-server's monitor": self.server.monitor_url,
        }

    def _shared_settings(self) -> dict[str, str]:
        """Settings that are the same for all services."""
        clock = self.log_meta.clock
        return {
            "TANDEM_STATE_KEY": str(state_key(self.folder)),
            "TANDEM_NATS_MONITOR_URL": self.server.monitor_url,
            "TANDEM_DEV_SECRET": self.dev_secret,
            "TANDEM_SERVICE_AREA": self.service_area,
            "TANDEM_CLOCK_RATE": str(clock.rate),
            "TANDEM_CLOCK_ANCHOR_MS": str(clock.anchor_ms),
            "TANDEM_WARNING_PUBLIC_KEY": str(secret_keys.public_file(warning_key(self.folder))),
        }

    def _access_settings(self, service: Service) -> dict[str, str]:
        """Settings with which a service authenticates itself."""
        settings = {"TANDEM_NATS_URL": self.server.url_as(service.nats_user)} if service.nats_user else {}
        if service is CONSOLE_PROCESS:
            settings["TANDEM_FIELD_URL"] = self.field_url
        if not self.certificates:
            return settings
        if service is FIELD_PROCESS:
            files = files_of(self.certificates, FIELD)
            return {**_tls_settings(files), **_pages_settings(files)}
        if service is not CONSOLE_PROCESS:
            return settings | _tls_settings(files_of(self.certificates, SERVICE + service.nats_user))
        pages = files_of(self.certificates, authority.CONSOLE_SERVER)
        return {
            **settings,
            **_tls_settings(files_of(self.certificates, CONSOLES[self.console_role])),
            **_pages_settings(pages),
        }


def _pages_settings(files: Files) -> dict[str, str]:
    return {"TANDEM_HTTP_TLS_CERT": str(files.cert), "TANDEM_HTTP_TLS_KEY": str(files.key)}


def _tls_settings(files: Files) -> dict[str, str]:
    return {"TANDEM_TLS_CERT": str(files.cert), "TANDEM_TLS_KEY": str(files.key), "TANDEM_TLS_CA": str(files.authority)}
