"""`python -m bench.attacker`: whether a stranger who opens sockets without end keeps honest phones and panics out.

A whole mesh, and a process that keeps 2,300 sockets at one port: they send a byte, and connect again. Meanwhile honest phones report,
each over a new connection at a random moment, and some send a panic, to ingest and by field. Once the phones have addresses of their
own, once they share the stranger's; once he attacks ingest's port for phones, once field's. A connection counts from its beginning to
the answer. Everything stays on loopback addresses. Exit code 1 where a connection fails, a panic isn't in the log, or the p99 exceeds a
second.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import aiohttp
import typer

from bench import figures
from bench.attacker.phones import Phone, ingest_url, known_phones, own_address
from bench.country.command import on_a_mesh
from bench.figures import Figure
from bench.mesh import machine
from bench.mesh.running import say
from services.client import mesh
from services.client.mesh import Clients, MeshConnection
from services.common.clock import wall_us
from services.common.failure import CommandFailed
from services.common.messaging import flow, pull
from tandem.common.v1 import log_pb2

STRANGER = "127.0.0.1"
TARGET_MS = 1_000.0
SEED = 20_261_202


class Attack(NamedTuple):
    """What the stranger attacks, and where the honest phones are."""

    port: str
    """Process whose port for phones is attacked: ingest or field; empty for none."""
    behind: bool
    """Whether the honest phones share the stranger's address."""

    @property
    def name(self) -> str:
        """Name of the attack in the table."""
        if not self.port:
            return "nobody attacks"
        return f"{self.port} attacked, phones {'behind his address' if self.behind else 'elsewhere'}"


ATTACKS = (
    Attack("", behind=False),
    *(Attack(port, behind=behind) for port in ("ingest", "field") for behind in (False, True)),
)


@dataclass(slots=True)
class Outcome:
    """What became of the honest phones under an attack."""

    attack: Attack
    panics: int
    """Panics that were sent to ingest, and as many by field."""
    latencies_ms: list[float] = field(default_factory=list)
    """From the beginning of each connection to its answer; infinite for one that failed."""
    panic_ms: list[float] = field(default_factory=list)
    """The same of the connections with a panic."""
    stored: dict[str, int] = field(default_factory=dict)
    """Number of panics in the log, by the way that they were sent: ingest or field."""
    per_s: float = 0.0
    """Connections of the stranger a second."""
    cores: float = 0.0
    """Processor time of the attacked process, cores."""

    def figures(self) -> list[Figure]:
        """The outcome with its targets."""
        name, failed = self.attack.name, sum(map(math.isinf, self.latencies_ms))
        p50, p99 = (figures.percentile(self.latencies_ms, share) for share in (50, 99))
        return [
            Figure(f"{name}: connections of the stranger", self.per_s, "/s"),
            figures.at_most(f"... {len(self.latencies_ms)} honest connections, failed", failed, "", target=0),
            Figure("... p50", p50, "ms"),
            figures.at_most("... p99", p99, "ms", target=TARGET_MS),
            *(
                figures.at_least(f"... {self.panics} panics by {way}, stored", count, "", target=self.panics)
                for way, count in self.stored.items()
            ),
            Figure("... slowest panic", max(self.panic_ms, default=math.nan), "ms"),
            Figure("... attacked process", self.cores, "cores"),
        ]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of the honest phones under each attack."""

    outcomes: Sequence[Outcome]

    def figures(self) -> list[Figure]:
        """The outcomes with their targets."""
        return [figure for outcome in self.outcomes for figure in outcome.figures()]


class Played:
    """One attack, with the honest phones of both ways."""

    def __init__(self, clients: Clients, by_way: dict[str, Sequence[Phone]], panics: int) -> None:
        self._clients = clients
        self._by_way = by_way
        self._panics = panics

    async def play(self, attack: Attack, *, sockets: int, seconds: int) -> Outcome:
        """Plays an attack of a duration, and reads the panics back from the log."""
        outcome = Outcome(attack, self._panics)
        # Without an attack, both ways are used alike.
        honest = self._by_way[attack.port] if attack.port else [*self._by_way["ingest"], *self._by_way["field"]][::2]
        chosen = random.Random(SEED)  # moments, and no secrets
        pids = self._clients.mesh.pids
        stranger = self._stranger(attack, sockets, seconds)
        before, began_s = machine.usage(pids), time.monotonic()
        sent: dict[str, dict[tuple[str, int], None]] = {way: {} for way in self._by_way}

        def address(number: int) -> str:
            return STRANGER if attack.behind else own_address(number)

        async def report(number: int, phone: Phone) -> None:
            await asyncio.sleep(chosen.uniform(1.0, seconds - 1.0))
            outcome.latencies_ms.append(await _send(phone, address(number), wall_us() // 1000))

        async def panic(number: int, phone: Phone, way: str) -> None:
            await asyncio.sleep(chosen.uniform(1.0, seconds - 1.0))
            at_ms = wall_us() // 1000
            sent[way][phone.device_id, at_ms] = None
            outcome.panic_ms.append(await _send(phone, address(number), at_ms, is_panic=True))

        async with asyncio.TaskGroup() as tasks:
            for number, phone in enumerate(honest):
                tasks.create_task(report(number, phone))
            for way, phones in self._by_way.items():
                for number, phone in enumerate(phones[: self._panics]):
                    tasks.create_task(panic(number, phone, way))
        used, took_s = machine.usage(pids).since(before), time.monotonic() - began_s
        outcome.cores = used.by_process.get(attack.port, 0.0) / took_s
        if stranger:
            outcome.per_s = json.loads((await stranger).stdout)["opened"] / seconds
        found = await self._panics_in_log()
        outcome.stored = {way: sum(panic in found for panic in panics) for way, panics in sent.items()}
        return outcome

    def _stranger(
        self, attack: Attack, sockets: int, seconds: int
    ) -> asyncio.Task[subprocess.CompletedProcess[str]] | None:
        if not attack.port:
            return None
        url = ingest_url(self._clients) if attack.port == "ingest" else self._clients.mesh.field_url
        command = (sys.executable, "-m", "bench.attacker.stranger", STRANGER, url.rpartition(":")[2])
        arguments = (*command, str(sockets), str(seconds))
        return asyncio.create_task(
            asyncio.to_thread(subprocess.run, arguments, stdout=subprocess.PIPE, text=True, check=True)
        )

    async def _panics_in_log(self) -> set[tuple[str, int]]:
        """Device and time of each panic in the log."""
        stream, found = flow.log_stream(0), set()
        async with self._clients.mesh.nats.bus_as("explain") as bus:
            last = (await bus.bounds_of(stream)).last
            async for messages in pull.read(bus, stream, 1):
                for message in messages:
                    event = log_pb2.LogEntry.FromString(message.data).equipment
                    if event.event == log_pb2.PANIC_BUTTON:
                        found.add((event.device_id, event.event_time_ms))
                if messages[-1].sequence >= last:
                    break
        return found


async def _send(phone: Phone, address: str, at_ms: int, *, is_panic: bool = False) -> float:
    """Sends a report from an address. Returns the time to its answer, ms; infinite if it failed."""
    began_s = time.monotonic()
    try:
        is_stored = await phone.send(address, at_ms, is_panic=is_panic)
    except (aiohttp.ClientError, TimeoutError, OSError):
        is_stored = False
    return (time.monotonic() - began_s) * 1000 if is_stored else math.inf


async def run(
    _folder: Path, running: MeshConnection, _up_pid: int, *, seconds: int, sockets: int, phones: int, panics: int
) -> Outcomes:
    """Plays all attacks, one after another. Raises CommandFailed if a phone can't be registered."""
    if panics > phones:
        raise CommandFailed(f"--panics: {panics} is more than there are phones, {phones}")
    async with mesh.connect(running) as clients:
        say(f"registering {phones} phones that report to ingest, and {phones} with her app")
        async with known_phones(clients, phones) as (direct, apps):
            played, outcomes = Played(clients, {"ingest": direct, "field": apps}, panics), []
            for attack in ATTACKS:
                say(f"{attack.name}: {seconds} s, load average {os.getloadavg()[0]:.1f}")
                outcomes.append(await played.play(attack, sockets=sockets, seconds=seconds))
    return Outcomes(outcomes)


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    seconds: Annotated[int, typer.Option(help="Duration of each attack, seconds.", min=5)] = 60,
    sockets: Annotated[int, typer.Option(help="Sockets of the stranger.", min=1)] = 2_300,
    *,
    phones: Annotated[int, typer.Option(help="Honest phones, each with one connection in an attack.", min=1)] = 200,
    panics: Annotated[int, typer.Option(help="Panics to ingest, and as many by field.", min=1)] = 15,
) -> None:
    """Measure whether a stranger with thousands of sockets keeps honest phones and panics out."""
    on_a_mesh(partial(run, seconds=seconds, sockets=sockets, phones=phones, panics=panics), as_json=as_json)


if __name__ == "__main__":
    typer.run(main)
