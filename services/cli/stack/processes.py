"""Table of the processes that `tandem up` starts, with their ports and settings."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.cli.stack.supervisor import Program
from services.common.messaging import flow

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
        more_ports={"TANDEM_HTTP_PORT": 32, "TANDEM_METRICS_PORT": 42},
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

CONSOLE = Service(
    name="console",
    package="console",
    nats_user="",
    offset=8,
    more_ports={"TANDEM_METRICS_PORT": 48},
    niceness=SHARING_NICENESS,
)
"""The console: serves pages by HTTP, and is a client of all other services."""

FIELD = Service(
    name="field",
    package="field",
    nats_user="",
    offset=9,
    more_ports={"TANDEM_METRICS_PORT": 49},
)
"""The app of protected persons: it faces their phones, and is a client of the registry, ingest and the warning leg."""

_OFFSETS = (
    *(offset for service in (*SERVICES, CONSOLE, FIELD) for offset in (service.offset, *service.more_ports.values())),
    NATS_OFFSET,
    NATS_MONITOR_OFFSET,
)


def addresses(base_port: int) -> dict[str, str]:
    """host:port of each service of a mesh, by process name."""
    return {service.name: f"127.0.0.1:{base_port + service.offset}" for service in SERVICES}


def other_addresses(services: Iterable[Service], base_port: int) -> dict[str, str]:
    """URL of each further port of these services, by process name and purpose."""
    names = {"TANDEM_HTTP_PORT": "phones", "TANDEM_METRICS_PORT": "metrics"}
    return {
        f"{service.name}: {names[setting]}": f"http://127.0.0.1:{base_port + offset}"
        for service in services
        for setting, offset in service.more_ports.items()
    }


def metrics_urls(services: Iterable[Service], base_port: int) -> dict[str, str]:
    """URL of the port with the metrics and the readiness of each process, by process name."""
    return {
        service.name: f"http://127.0.0.1:{base_port + service.more_ports['TANDEM_METRICS_PORT']}"
        for service in services
    }


def console_url(base_port: int, tls: bool) -> str:
    """URL of the console."""
    return f"{'https' if tls else 'http'}://127.0.0.1:{base_port + CONSOLE.offset}"


def field_url(base_port: int, tls: bool) -> str:
    """URL of the protected persons' app."""
    return f"{'https' if tls else 'http'}://127.0.0.1:{base_port + FIELD.offset}"


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
        **({**_all(base_port), "TANDEM_MESH_FOLDER": str(folder.absolute())} if service is CONSOLE else {}),
        **(_of_field(base_port) if service is FIELD else {}),
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


def _of_field(base_port: int) -> dict[str, str]:
    """Addresses of the services that field calls."""
    address_of = addresses(base_port)
    phones = next(service.more_ports["TANDEM_HTTP_PORT"] for service in SERVICES if service.name == "ingest")
    return {
        "TANDEM_REGISTRY": f"ipv4:{address_of['registry']}",
        **{f"TANDEM_DISPATCH_{leg.upper()}": f"ipv4:{address_of[f'dispatch-{leg}']}" for leg in flow.LEGS},
        "TANDEM_GEOFENCE": _neighbours(base_port)["TANDEM_GEOFENCE"],
        "TANDEM_INGEST_PHONES": f"http://127.0.0.1:{base_port + phones}",
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
