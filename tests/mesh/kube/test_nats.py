"""The NATS configuration of the production overlay on three real servers: the cluster, its users, and the loss of one server."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest

from services.cli.commands.streams import make
from services.common.certificates import files_of
from services.common.errors import Unavailable
from services.common.messaging import bus as buses
from services.common.messaging.permissions import SERVICE
from services.common.settings import CommonSettings
from services.local import authority, nats_server
from tests.support.common.ports import free_port
from tools.kube.render import K8S, render

SERVERS = 3
WITHIN_S = 50


class Cluster:
    """Three servers with the rendered files. Only hosts, ports and folders are replaced by local ones."""

    def __init__(self, folder: Path, config: dict[str, str]) -> None:
        self.certificates = folder / "certs"
        authority.issue(self.certificates, authority.SERVERS, authority.LOOPBACK, lifetime=timedelta(days=1))
        clients, routes = ([free_port() for _ in range(SERVERS)] for _ in range(2))
        self.url = ",".join(f"tls://127.0.0.1:{port}" for port in clients)
        self.commands = []
        for n in range(SERVERS):
            own = folder / str(n)
            own.mkdir()
            tls = files_of(self.certificates, f"{SERVICE}nats")
            text = config["nats.conf"]
            for rendered_text, local_text in (
                ("$POD_NAME", f"nats-{n}"),
                ("0.0.0.0:4222", f"127.0.0.1:{clients[n]}"),
                ("0.0.0.0:8222", f"127.0.0.1:{free_port()}"),
                ("0.0.0.0:6222", f"127.0.0.1:{routes[n]}"),
                *((f"nats-{m}.nats:6222", f"127.0.0.1:{routes[m]}") for m in range(SERVERS)),
                ("/run/nats/", f"{own}/"),
                ("/data/store", f"{own}/store"),
                *((f"/tls/{path.name}", str(path)) for path in tls),
            ):
                assert rendered_text in text, rendered_text
                text = text.replace(rendered_text, local_text)
            assert not re.search(r'"/(tls|data|run)/', text)
            (own / "nats.conf").write_text(text)
            (own / "users.conf").write_text(config["users.conf"])
            self.commands.append((nats_server.server_binary(), "-c", str(own / "nats.conf"), "-l", str(own / "log")))

    def settings(self, user: str) -> CommonSettings:
        tls = files_of(self.certificates, SERVICE + user)
        return CommonSettings(port=0, nats_url=self.url, tls_cert=tls.cert, tls_key=tls.key, tls_ca=tls.authority)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[Cluster, list[subprocess.Popen[bytes]]]]:
    rendered = render(K8S / "overlays" / "production")
    config = next(item["data"] for item in rendered if item["metadata"]["name"].startswith("nats-") and "data" in item)
    nats_cluster = Cluster(tmp_path, config)
    with ExitStack() as stack:
        running = []
        for command in nats_cluster.commands:
            running.append(stack.enter_context(subprocess.Popen(command)))
            stack.callback(running[-1].kill)
        yield nats_cluster, running


async def test_a_cluster_forms_and_works_without_one_of_its_servers(
    cluster: tuple[Cluster, list[subprocess.Popen[bytes]]],
) -> None:
    nats_cluster, running = cluster
    async with asyncio.timeout(WITHIN_S):
        created = await make(nats_cluster.settings("setup"), 1, SERVERS, max_bytes=64 << 20)
    assert created.partitions == 1
    ingest = nats_cluster.settings("ingest")
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
