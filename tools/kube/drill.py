"""`python -m tools.kube.drill IMAGE NATS_IMAGE POSTGRES_IMAGE`: runs the local overlay with podman, and drills it.

It runs the demo by mutual TLS and checks the consoles. Then it kills a NATS server, an evaluator, a leg and the database in turn, and
runs the demo after each kill. At the end it compares the stored alerts with an offline fold. The drill fails if a pod ends without
being killed. Pods without a given image are named and not run.
"""

from __future__ import annotations

import fcntl
import gc
import json
import secrets
import signal
import ssl
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path

import uvloop

from services.cli.commands.operate import certs
from services.cli.commands.run import demo
from services.cli.failure import CommandFailed
from services.cli.stack.mesh import MeshConnection
from services.cli.stack.nats_server import NatsServer
from services.common.clock import MeshClock
from services.common.messaging import flow, pull, streams
from services.common.messaging.bus import Bus
from services.common.privacy import sealing
from services.common.rpc.certificates import AUTHORITY, CERT, KEY, folder_of
from services.geofence import translate
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert
from services.geofence.domain.entries import Entry
from services.geofence.domain.state import State
from services.registry.ledger.signing import open_signer
from tools.kube import identities
from tools.kube.__main__ import K8S, given
from tools.kube.render import containers, render
from tools.kube.run_local import NETWORK, LocalPods, Pod, image_name

OVERLAY = K8S / "overlays" / "local"
PHONES, PAGES = "tls-phones", "pages-"
"""Names of Secrets with a certificate for phones or browsers, not for internal callers."""
CONSOLE = "console-"
ASKED = ("incidents", "steps")
"""Feeds that each desk's console needs; the police's console needs alerts, too."""
CONNECTED_WITHIN_S = 20.0
KILLED = ("nats-1", "geofence-0", "dispatch-police-0", "postgres-0")
AWAY_S = 2.0
"""Time until a killed pod is restarted, seconds; a kubelet would take about as long."""


def made_secrets(folder: Path, hosts: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Creates the Secrets of given.txt, as docs/kubernetes.md tells operators to do."""
    wanted = given(OVERLAY)
    # Only browsers and phones see the certificates of `pages-...` and `tls-phones`, so any server certificate works.
    identity_by_secret = {name: identities.identity_of(name.removeprefix(identities.PREFIX)) for name in wanted}
    identity_by_secret |= {
        name: identities.identity_of("ingest") for name in wanted if name == PHONES or name.startswith(PAGES)
    }
    ids = {*certs.SERVERS, *certs.CLIENTS, *filter(None, identity_by_secret.values())}
    certs.issue(folder / "certs", sorted(ids), (*certs.LOOPBACK, *hosts), lifetime=timedelta(days=1))
    open_signer(folder / "ledger.key")
    sealing.open_private_keys(folder / "warning.key")
    files = {name: (folder / name).read_text() for name in ("ledger.key", "ledger.pub", "warning.key", "warning.pub")}
    password = secrets.token_hex(16)
    values = {
        **files,
        "registry-key": secrets.token_hex(32),
        "session.key": secrets.token_hex(32),
        "state.key": secrets.token_hex(32),
        "password": password,
        "url": f"postgresql://registry:{password}@postgres/registry",
    }
    made: dict[str, dict[str, str]] = {}
    for name, keys in wanted.items():
        if CERT in keys:
            own = folder_of(folder / "certs", identity_by_secret[name])
            values |= {key: (own / key).read_text() for key in (CERT, KEY, AUTHORITY)}
        made[name] = {key: values[key] for key in keys}
    return made


def mesh_of(player: LocalPods, folder: Path) -> MeshConnection:
    """The pods as a mesh for the `tandem` commands. A Deployment is represented by its first pod."""
    addresses: dict[str, str] = {}
    nats = ""
    for pod in player.pods:
        kind = pod.workload["metadata"]["name"]
        if kind.startswith(CONSOLE):
            continue
        if kind == "nats":
            nats = nats or f"tls://{pod.ip}:4222"
        elif kind != "postgres":
            name = pod.name if kind == "geofence" else kind
            addresses.setdefault(name, f"{pod.ip}:{pod.port}")
    server = NatsServer(url=nats, monitor_url="", passwords={}, certificates=folder / "certs")
    return MeshConnection(
        addresses=addresses,
        pids={},
        dev_secret="",
        clock=MeshClock(),
        nats=server,
        partitions=1,
        certificates=folder / "certs",
        console_url="",
    )


async def stored_and_folded(mesh: MeshConnection) -> tuple[list[bytes], list[bytes]]:
    """The stored alerts, and the alerts of an offline fold over the log."""
    async with mesh.nats.bus_as("explain") as bus:
        log_meta = await streams.read_log_meta(bus)
        state = State(0, log_meta.log_id, clock_rate=log_meta.clock.rate, clock_anchor_ms=log_meta.clock.anchor_ms)
        folded = []
        for message in await _all(bus, flow.log_stream(0)):
            body = translate.stored_body(message.subject, message.data)
            for output in fold.step(state, Entry(message.sequence, message.stamp_ms, body)):
                if isinstance(output, Alert):
                    folded.append(translate.alert_to_proto(output, 0).SerializeToString())
        return [message.data for message in await _all(bus, flow.ALERTS.name)], folded


async def _all(bus: Bus, stream: str) -> list[pull.Delivered]:
    return [message async for message in pull.between(bus, stream, 1, last=(await bus.bounds_of(stream)).last)]


def feeds_are_open(player: LocalPods, pod: Pod) -> bool:
    """Whether a console receives all feeds of its role, according to its own log."""
    until_s = time.monotonic() + CONNECTED_WITHIN_S
    wanted = {*ASKED, *(["alerts"] if pod.name.startswith(f"{CONSOLE}police") else [])}
    while True:
        lines = [json.loads(line) for line in player.log_of(pod).splitlines() if line.startswith("{")]
        away = {line["what"]: line["away"] for line in lines if line["event"] == "feed"}
        if {what for what, reason in away.items() if not reason} >= wanted:
            return True
        if time.monotonic() > until_s:
            print(f"{pod.name}: {away}", flush=True)
            return False
        time.sleep(0.5)


def shows_pages(pod: Pod, folder: Path) -> bool:
    """Whether a browser that trusts the authority gets the sign-in page and a script, under the Service's name."""
    context = ssl.create_default_context(cafile=folder / "certs" / AUTHORITY)
    port = next(port["containerPort"] for port in pod.container["ports"] if port["name"] == "https")
    for path in ("/sign-in", "/static/live.js"):
        request = urllib.request.Request(f"https://{pod.ip}:{port}{path}", headers={"Host": pod.name.rsplit("-", 1)[0]})
        with urllib.request.urlopen(request, timeout=5, context=context) as answer:  # noqa: S310  # made just above
            if answer.status != HTTPStatus.OK or not answer.read():
                return False
    return True


def demo_succeeds(mesh: MeshConnection) -> bool:
    """Runs the demo. Returns whether both legs were acknowledged."""
    try:
        return uvloop.run(demo.play(mesh, as_json=True)) == 0
    except CommandFailed as error:
        print(error, flush=True)
        return False
    finally:
        # A closed channel goes on connecting while one of its calls is in memory, and would reach absent or other pods.
        gc.collect()


def drill(player: LocalPods, folder: Path) -> bool:
    """Runs the drill. Returns whether every demo succeeded, no pod ended without being killed, and no alert was lost."""
    began_s = time.monotonic()
    failed: list[str] = []

    def say(line: str, went_well: bool = True) -> None:
        print(f"{time.monotonic() - began_s:6.1f} s  {line}", flush=True)
        ended = [f"{name} ended by itself ({how})" for name, how in player.ended().items()]
        new = [*([] if went_well else [line]), *(failure for failure in ended if failure not in failed)]
        print(*(f"FAILED: {failure}" for failure in new), sep="\n", end="\n" if new else "", flush=True)
        failed.extend(new)

    print(f"starting {len(player.pods)} pods and {len(player.jobs)} Jobs", flush=True)
    player.up()
    say("all are ready")
    mesh = mesh_of(player, folder)
    succeeded = demo_succeeds(mesh)
    say(f"the demo by mutual TLS succeeded: {succeeded}", succeeded)
    for pod in (pod for pod in player.pods if pod.name.startswith(CONSOLE)):
        listens, serves = feeds_are_open(player, pod), shows_pages(pod, folder)
        say(
            f"{pod.name} receives its desk's feeds: {listens}; its pages are served: {serves}",
            listens and serves,
        )
    for name in KILLED:
        pod = player.kill(name)
        time.sleep(AWAY_S)
        player.start(pod)
        succeeded = demo_succeeds(mesh)
        player.wait_until_ready(pod)
        say(f"{name} was killed and started {AWAY_S:.0f} s later; the demo succeeded at once: {succeeded}", succeeded)
    stored, folded = uvloop.run(stored_and_folded(mesh))
    same = bool(stored) and sorted(stored) == sorted(folded)
    say(f"{len(stored)} alerts are stored, {len(folded)} by an offline fold, the same: {same}", same)
    say(f"killed: {', '.join(KILLED)}; ended by themselves: {', '.join(player.ended()) or 'none'}")
    return not failed


def drill_with_logs(player: LocalPods, folder: Path) -> bool:
    """Runs the drill, and keeps the logs of all pods if it fails."""
    went_well = False
    try:
        went_well = drill(player, folder)
        return went_well
    finally:
        if not went_well:
            print(f"the logs of all pods are in {player.keep_logs()}", flush=True)


@contextmanager
def only_one() -> Iterator[None]:
    """Prevents a second drill, whose pods would have the same names. Raises BlockingIOError if one is running."""
    with (Path(tempfile.gettempdir()) / f"{NETWORK}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def main(images: Mapping[str, str]) -> int:
    """Runs the drill for these images, by name. Returns the exit code."""
    # Both signals end the drill in order. A shell that starts it in the background would have it ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with only_one(), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        rendered = render(OVERLAY)
        objects = [obj for obj in rendered if all(image_name(container) in images for container in containers(obj))]
        print("not run:", *sorted(obj["metadata"]["name"] for obj in rendered if obj not in objects))
        player = LocalPods(objects=objects, folder=folder, secrets={}, images=images)
        hosts = {host for pod in player.pods for host in (pod.ip, *pod.aliases)}
        player.secrets = made_secrets(folder, tuple(sorted(hosts)))
        player.down()  # removes the remains of a killed drill
        try:
            return 0 if drill_with_logs(player, folder) else 1
        finally:
            player.down()
            print("all pods are removed", flush=True)


if __name__ == "__main__":
    sys.exit(main(dict(zip(("tandem", "nats", "postgres"), sys.argv[1:], strict=True))))
