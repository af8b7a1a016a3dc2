"""The part of the cluster test that runs in a pod of the cluster, in the image: `client.py demo` and `client.py alerts`.

It reaches services by their names and authenticates with the certificates in /certs. It prints one JSON object at the end.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import urllib.request
from pathlib import Path

import uvloop

from services.client import demo, outcome
from services.client.mesh import MeshConnection, NatsServer, connect
from services.common.clock import MeshClock
from services.common.failure import FAILED
from services.common.messaging import flow, pull, streams
from services.common.messaging.bus import Bus
from services.geofence import translate
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert
from services.geofence.domain.entries import Entry
from services.geofence.domain.state import State
from tandem.common.v1 import alert_pb2

CERTIFICATES = Path("/certs")
ADDRESSES = {
    "registry": "registry:7401",
    "ingest": "ingest:7402",
    # A headless Service: both evaluators' addresses.
    "geofence": "geofence:7403",
    "dispatch-probation": "dispatch-probation:7404",
    "dispatch-police": "dispatch-police:7405",
    "dispatch-warning": "dispatch-warning:7406",
}
STORED_WITHIN_S = 60.0
"""Maximum time until evaluators have stored the alerts of the entries that the log holds, seconds."""
NOT_REACHED = 'tandem_dispatch_not_reached_total{leg="warning"}'
"""Series that pages somebody when it rises."""


def mesh() -> MeshConnection:
    """The mesh of this namespace, by the names of its Services."""
    return MeshConnection(
        addresses=ADDRESSES,
        pids={},
        dev_secret="",
        clock=MeshClock(),
        nats=NatsServer(url="tls://nats:4222", monitor_url="", passwords={}, certificates=CERTIFICATES),
        partitions=1,
        certificates=CERTIFICATES,
        console_url="",
    )


async def alerts(running: MeshConnection) -> dict[str, int | bool]:
    """Numbers of stored alerts and of those of an offline fold over the log, and whether they are the same.

    The log may grow meanwhile, so later alerts aren't compared, and evaluators get time to store the last ones. An alert names the
    version of the fold that put it out, which differs after an upgrade and isn't compared either.
    """
    async with running.nats.bus_as("explain") as bus:
        log_meta = await streams.read_log_meta(bus)
        state = State(0, log_meta.log_id, clock_rate=log_meta.clock.rate, clock_anchor_ms=log_meta.clock.anchor_ms)
        folded, last = [], 0
        for message in await _all(bus, flow.log_stream(0)):
            body, last = translate.stored_body(message.subject, message.data), message.sequence
            for output in fold.step(state, Entry(message.sequence, message.stamp_ms, body)):
                if isinstance(output, Alert):
                    folded.append(_without_version(translate.alert_to_proto(output, 0)))
        give_up_at = time.monotonic() + STORED_WITHIN_S
        while True:
            published = [alert_pb2.Alert.FromString(message.data) for message in await _all(bus, flow.ALERTS.name)]
            stored = [_without_version(alert) for alert in published if alert.sequence <= last]
            if len(stored) >= len(folded) or time.monotonic() > give_up_at:
                return {"stored": len(stored), "folded": len(folded), "same": sorted(stored) == sorted(folded)}
            await asyncio.sleep(1)


def _without_version(alert: alert_pb2.Alert) -> bytes:
    alert.ClearField("fold_version")
    return alert.SerializeToString(deterministic=True)


async def _all(bus: Bus, stream: str) -> list[pull.Delivered]:
    return [message async for message in pull.between(bus, stream, 1, last=(await bus.bounds_of(stream)).last)]


async def play_demo(running: MeshConnection) -> int:
    """Runs the demo, and prints its outcome. Returns the exit code: 0 if both legs of every incident are acknowledged."""
    async with connect(running) as clients, demo.stage(clients, demo.new_plan()) as stage:
        async for _ in demo.play(stage):
            pass
        incidents = await demo.settled(stage)
    print(json.dumps(outcome.to_json(stage.match_ms, incidents)))
    return 0 if outcome.all_answered(incidents) else FAILED


def not_reached() -> int:
    """Number of protected persons who got no warning, as the warning leg counts it."""
    with urllib.request.urlopen("http://dispatch-warning-observed:8080/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return round(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(NOT_REACHED)))


def main(command: str) -> int:
    """Runs a command. Returns the exit code."""
    if command == "demo":
        return uvloop.run(play_demo(mesh()))
    print(json.dumps({**uvloop.run(alerts(mesh())), "not_reached": not_reached()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
