"""The NATS configuration that the production overlay renders, on three real servers: a cluster, its users, one server gone."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest

from services.cli.commands.mesh import certs
from services.cli.commands.mesh.streams import make
from services.cli.stack import nats_server
from services.common.messaging import bus as buses
from services.common.messaging.permissions import SERVICE
from services.common.rpc.certificates import files_of
from services.common.rpc.errors import Unavailable
from services.common.settings import CommonSettings
from tests.support.common.ports import free_port
from tools.kube.__main__ import K8S
from tools.kube.render import render

SERVERS = 3
WITHIN_S = 50


class Cluster:
    """Three servers with the rendered files; only hosts, ports and folders are this machine's."""

    def __init__(self, folder: Path, config: dict[str, str]) -> None:
        self.certificates = folder / "certs"
        certs.issue(self.certificates, certs.SERVERS, certs.LOOPBACK, timedelta(days=1))
        clients, routes = ([free_port() for _ in range(SERVERS)] for _ in range(2))
        self.url = ",".join(f"tls://127.0.0.1:{port}" for port in clients)
        self.commands = []
        for n in range(SERVERS):
            own = folder / str(n)
            own.mkdir()
            tls = files_of(self.certificates, f"{SERVICE}nats")
            text = config["nats.conf"]
            for there, here in (
                ("$POD_NAME", f"nats-{n}"),
                ("0.0.0.0:4222", f"127.0.0.1:{clients[n]}"),
                ("0.0.0.0:8222", f"127.0.0.1:{free_port()}"),
                ("0.0.0.0:6222", f"127.0.0.1:{routes[n]}"),
                *((f"nats-{m}.nats:6222", f"127.0.0.1:{routes[m]}") for m in range(SERVERS)),
                ("/run/nats/", f"{own}/"),
                ("/data/store", f"{own}/store"),
                *((f"/tls/{path.name}", str(path)) for path in tls),
            ):
                assert there in text, there
                text = text.replace(there, here)
            assert not re.search(r'"/(tls|data|run)/', text)
            (own / "nats.conf").write_text(text)
            (own / "users.conf").write_text(config["users.conf"])
            self.commands.append((nats_server.binary(), "-c", str(own / "nats.conf"), "-l", str(own / "log")))

    def settings(self, user: str) -> CommonSettings:
        tls = files_of(self.certificates, SERVICE + user)
        return CommonSettings(port=0, nats_url=self.url, tls_cert=tls.cert, tls_key=tls.key, tls_ca=tls.authority)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[Cluster, list[subprocess.Popen[bytes]]]]:
    rendered = render(K8S / "overlays" / "production")
    config = next(one["data"] for one in rendered if one["metadata"]["name"].startswith("nats-") and "data" in one)
    one = Cluster(tmp_path, config)
    with ExitStack() as stack:
        running = []
        for command in one.commands:
            running.append(stack.enter_context(subprocess.Popen(command)))
            stack.callback(running[-1].kill)
        yield one, running


async def test_a_cluster_forms_and_goes_on_without_one_of_its_servers(
    cluster: tuple[Cluster, list[subprocess.Popen[bytes]]],
) -> None:
    one, running = cluster
    async with asyncio.timeout(WITHIN_S):
        made = await make(one.settings("setup"), 1, SERVERS, 64 << 20)
    assert made.partitions == 1
    ingest = one.settings("ingest")
    async with asyncio.timeout(WITHIN_S), buses.connect(ingest.nats_url, "ingest", ingest.nats_tls) as bus:
        with pytest.raises(Unavailable):
            await bus.publish("log.0.case", b"")
        config = (await bus.api("STREAM.INFO.LOG_0", {}))["config"]
        assert (config["num_replicas"], config["storage"], config["deny_purge"]) == (SERVERS, "file", True)
        for n in range(30):
            await bus.publish_until_stored("log.0.report", b"", msg_id=str(n))
            if n == 10:
                running[0].kill()
        assert (await bus.bounds_of("LOG_0")).last == 30
