"""Plan of a mesh on this machine: the processes that `tandem up` starts, their settings, and where they are reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.cli.commands.operate import certs
from services.cli.stack import processes
from services.cli.stack.mesh import MeshConnection
from services.cli.stack.nats_server import NatsServer
from services.cli.stack.processes import Service
from services.cli.stack.supervisor import Program
from services.common.messaging.permissions import SERVICE
from services.common.messaging.streams import LogMetadata
from services.common.privacy import sealing
from services.common.rpc.certificates import Files, files_of
from services.common.rpc.identity import CONSOLES, FIELD


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
        console = (processes.CONSOLE,) if self.has_console else ()
        return (*processes.SERVICES, processes.FIELD, *console)

    @property
    def console_url(self) -> str:
        """URL of the console; empty if there is none."""
        return processes.console_url(self.base_port, tls=self.certificates is not None) if self.has_console else ""

    @property
    def field_url(self) -> str:
        """URL of the protected persons' app."""
        return processes.field_url(self.base_port, tls=self.certificates is not None)

    def programs(self) -> list[Program]:
        """The programs of all services."""
        return [
            processes.program(
                service, self.folder, self.base_port, given=self._shared_settings() | self._access_settings(service)
            )
            for service in self.services
        ]

    def connection(self, pids: Mapping[str, int]) -> MeshConnection:
        """The running mesh with these process ids, for mesh.json."""
        return MeshConnection(
            addresses=processes.addresses(self.base_port),
            pids=pids,
            dev_secret=self.dev_secret,
            clock=self.log_meta.clock,
            nats=self.server,
            partitions=self.log_meta.partitions,
            certificates=self.certificates,
            console_url=self.console_url,
            field_url=self.field_url,
            metrics_urls=processes.metrics_urls(self.services, self.base_port),
        )

    def shown_addresses(self) -> dict[str, str]:
        """Address of each port of the mesh, by process and purpose."""
        return {
            **processes.addresses(self.base_port),
            **processes.other_addresses(self.services, self.base_port),
            **({processes.CONSOLE.name: self.console_url} if self.has_console else {}),
            processes.FIELD.name: self.field_url,
            "nats-server": self.server.url,
            "nats-server's monitor": self.server.monitor_url,
        }

    def _shared_settings(self) -> dict[str, str]:
        """Settings that are the same for all services."""
        clock = self.log_meta.clock
        return {
            "TANDEM_STATE_KEY": str(processes.state_key(self.folder)),
            "TANDEM_NATS_MONITOR_URL": self.server.monitor_url,
            "TANDEM_DEV_SECRET": self.dev_secret,
            "TANDEM_SERVICE_AREA": self.service_area,
            "TANDEM_CLOCK_RATE": str(clock.rate),
            "TANDEM_CLOCK_ANCHOR_MS": str(clock.anchor_ms),
            "TANDEM_WARNING_PUBLIC_KEY": str(sealing.public_file(processes.warning_key(self.folder))),
        }

    def _access_settings(self, service: Service) -> dict[str, str]:
        """Settings with which a service authenticates itself."""
        settings = {"TANDEM_NATS_URL": self.server.url_as(service.nats_user)} if service.nats_user else {}
        if service is processes.CONSOLE:
            settings["TANDEM_FIELD_URL"] = self.field_url
        if not self.certificates:
            return settings
        if service is processes.FIELD:
            files = files_of(self.certificates, FIELD)
            return {**_tls_settings(files), **_pages_settings(files)}
        if service is not processes.CONSOLE:
            return settings | _tls_settings(files_of(self.certificates, SERVICE + service.nats_user))
        pages = files_of(self.certificates, certs.CONSOLE_SERVER)
        return {
            **settings,
            **_tls_settings(files_of(self.certificates, CONSOLES[self.console_role])),
            **_pages_settings(pages),
        }


def _pages_settings(files: Files) -> dict[str, str]:
    return {"TANDEM_HTTP_TLS_CERT": str(files.cert), "TANDEM_HTTP_TLS_KEY": str(files.key)}


def _tls_settings(files: Files) -> dict[str, str]:
    return {"TANDEM_TLS_CERT": str(files.cert), "TANDEM_TLS_KEY": str(files.key), "TANDEM_TLS_CA": str(files.authority)}
