"""`python -m tools.kube.drill IMAGE NATS_IMAGE POSTGRES_IMAGE`: plays the local overlay with podman and the demo through it by
mutual TLS, looks at the consoles, kills a NATS server, an evaluator, a leg and the database in turn, and compares what is stored with
an offline fold. A pod that ends without having been killed fails it. Pods whose images are not given are not played, and are named.
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

from services.cli.commands.mesh import certs, demo
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
from services.registry.ledger import open_signer
from tools.kube import identities
from tools.kube.__main__ import K8S, given
from tools.kube.render import containers, render
from tools.kube.run_local import NETWORK, Player, Pod, image_name

OVERLAY = K8S / "overlays" / "local"
PHONES, PAGES = "tls-phones", "pages-"
"""Secrets with a certificate that isn't for callers inside."""
CONSOLE = "console-"
ASKED = ("incidents", "steps")
"""What each desk's console lives on; the police's also asks for alerts."""
CONNECTED_WITHIN_S = 20.0
KILLED = ("nats-1", "geofence-0", "dispatch-police-0", "postgres-0")
AWAY_S = 2.0
"""After which a kubelet would have started it again."""


def made_secrets(folder: Path, hosts: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """The Secrets that given.txt wants, as docs/kubernetes.md has somebody make them."""
    wanted = given(OVERLAY)
    # What a Secret `pages-...` or `tls-phones` holds is known to browsers and phones alone: any that serves will do.
    who = {name: identities.identity_of(name.removeprefix(identities.PREFIX)) for name in wanted}
    who |= {name: identities.identity_of("ingest") for name in wanted if name == PHONES or name.startswith(PAGES)}
    ids = {*certs.SERVERS, *certs.CLIENTS, *filter(None, who.values())}
    certs.issue(folder / "certs", sorted(ids), (*certs.LOOPBACK, *hosts), timedelta(days=1))
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
    found: dict[str, dict[str, str]] = {}
    for name, keys in wanted.items():
        if CERT in keys:
            own = folder_of(folder / "certs", who[name])
            values |= {key: (own / key).read_text() for key in (CERT, KEY, AUTHORITY)}
        found[name] = {key: values[key] for key in keys}
    return found


def mesh_of(player: Player, folder: Path) -> MeshConnection:
    """The pods as `tandem` knows a mesh; Deployments by their first pod."""
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
    server = NatsServer(nats, "", {}, folder / "certs")
    return MeshConnection(addresses, {}, "", MeshClock(), server, 1, folder / "certs", "")


async def stored_and_folded(mesh: MeshConnection) -> tuple[list[bytes], list[bytes]]:
    """The alerts that are stored, and those of an offline fold over the log."""
    async with mesh.nats.bus_as("explain") as bus:
        log_meta = await streams.read_log_meta(bus)
        state = State(0, log_meta.log_id, clock_rate=log_meta.clock.rate, clock_anchor_ms=log_meta.clock.anchor_ms)
        folded = []
        for one in await _all(bus, flow.log_stream(0)):
            body = translate.stored_body(one.subject, one.data)
            for output in fold.step(state, Entry(one.sequence, one.stamp_ms, body)):
                if isinstance(output, Alert):
                    folded.append(translate.alert_to_proto(output, 0).SerializeToString())
        return [one.data for one in await _all(bus, flow.ALERTS.name)], folded


async def _all(bus: Bus, stream: str) -> list[pull.Delivered]:
    return [one async for one in pull.between(bus, stream, 1, (await bus.bounds_of(stream)).last)]


def asks_by_its_role(player: Player, pod: Pod) -> bool:
    """Whether a console's leg and evaluators let it listen, by what it says of each itself."""
    until_s = time.monotonic() + CONNECTED_WITHIN_S
    wanted = {*ASKED, *(["alerts"] if pod.name.startswith(f"{CONSOLE}police") else [])}
    while True:
        lines = [json.loads(line) for line in player.said(pod).splitlines() if line.startswith("{")]
        away = {line["what"]: line["away"] for line in lines if line["event"] == "feed"}
        if {what for what, reason in away.items() if not reason} >= wanted:
            return True
        if time.monotonic() > until_s:
            print(f"{pod.name}: {away}", flush=True)
            return False
        time.sleep(0.5)


def shows_pages(pod: Pod, folder: Path) -> bool:
    """Whether a browser that trusts the authority gets the page on which one signs in and a script, by the Service's name."""
    context = ssl.create_default_context(cafile=folder / "certs" / AUTHORITY)
    port = next(one["containerPort"] for one in pod.container["ports"] if one["name"] == "https")
    for path in ("/sign-in", "/static/live.js"):
        request = urllib.request.Request(f"https://{pod.ip}:{port}{path}", headers={"Host": pod.name.rsplit("-", 1)[0]})
        with urllib.request.urlopen(request, timeout=5, context=context) as answer:  # noqa: S310  # made just above
            if answer.status != HTTPStatus.OK or not answer.read():
                return False
    return True


def comes_through(mesh: MeshConnection) -> bool:
    """Whether the demo gets both legs acknowledged."""
    try:
        return uvloop.run(demo.play(mesh, as_json=True)) == 0
    except CommandFailed as error:
        print(error, flush=True)
        return False
    finally:
        # A channel that was closed goes on connecting while a call of it is in memory, and then finds pods away, or strangers.
        gc.collect()


def play(player: Player, folder: Path) -> bool:
    """Whether the demo came through each time, no pod ended that wasn't killed, and nothing was lost."""
    began_s = time.monotonic()
    failed: list[str] = []

    def say(line: str, went_well: bool = True) -> None:
        print(f"{time.monotonic() - began_s:6.1f} s  {line}", flush=True)
        ended = [f"{name} ended by itself ({how})" for name, how in player.ended().items()]
        new = [*([] if went_well else [line]), *(one for one in ended if one not in failed)]
        print(*(f"FAILED: {one}" for one in new), sep="\n", end="\n" if new else "", flush=True)
        failed.extend(new)

    print(f"starting {len(player.pods)} pods and {len(player.jobs)} Jobs", flush=True)
    player.up()
    say("all are ready")
    mesh = mesh_of(player, folder)
    through = comes_through(mesh)
    say(f"the demo by mutual TLS: {through}", through)
    for pod in (pod for pod in player.pods if pod.name.startswith(CONSOLE)):
        listens, serves = asks_by_its_role(player, pod), shows_pages(pod, folder)
        say(
            f"{pod.name} listens to what its desk may see: {listens}; its pages are served: {serves}",
            listens and serves,
        )
    for name in KILLED:
        pod = player.kill(name)
        time.sleep(AWAY_S)
        player.start(pod)
        through = comes_through(mesh)
        player.wait_until_ready(pod)
        say(f"{name} killed, started {AWAY_S:.0f} s later, the demo at once: {through}", through)
    stored, folded = uvloop.run(stored_and_folded(mesh))
    same = bool(stored) and sorted(stored) == sorted(folded)
    say(f"{len(stored)} alerts are stored, {len(folded)} by an offline fold, the same: {same}", same)
    say(
        f"disturbed: {', '.join(KILLED)}, which were killed; ended by themselves: {', '.join(player.ended()) or 'nobody'}"
    )
    return not failed


def recorded(player: Player, folder: Path) -> bool:
    """As `play`; where it doesn't go well the logs of all pods are kept."""
    went_well = False
    try:
        went_well = play(player, folder)
        return went_well
    finally:
        if not went_well:
            print(f"the logs of all pods are in {player.keep_logs()}", flush=True)


@contextmanager
def only_one() -> Iterator[None]:
    """Raises BlockingIOError where a play is going on, whose pods have the same names."""
    with (Path(tempfile.gettempdir()) / f"{NETWORK}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def main(images: Mapping[str, str]) -> int:
    """The exit code."""
    # Both end it in order, also where a shell that started it in the background had it ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with only_one(), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        rendered = render(OVERLAY)
        objects = [one for one in rendered if all(image_name(each) in images for each in containers(one))]
        print("not played:", *sorted(one["metadata"]["name"] for one in rendered if one not in objects))
        player = Player(objects, folder, {}, images)
        hosts = {host for pod in player.pods for host in (pod.ip, *pod.aliases)}
        player.secrets = made_secrets(folder, tuple(sorted(hosts)))
        player.down()  # what a play has left that was ended by force
        try:
            return 0 if recorded(player, folder) else 1
        finally:
            player.down()
            print("all is taken down", flush=True)


if __name__ == "__main__":
    sys.exit(main(dict(zip(("tandem", "nats", "postgres"), sys.argv[1:], strict=True))))
