"""The in-memory JetStream of the simulation answers as the real nats-server does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, cast

import nats
from nats.aio.client import Client as NatsClient

from tests.simulation.jetstream.client import SimulatedClient
from tests.simulation.jetstream.contract import Connection, Side, Step, play
from tests.simulation.jetstream.server import MemoryServer
from tests.simulation.kernel.network import Network
from tests.simulation.kernel.process import Process
from tests.simulation.kernel.world import World
from tests.support.common.nats import running_server

SEQUENCES = 1_000
CONCURRENT = 16
MAX_REPEATED = 3
"""Sequences that may be played a second time, alone."""
Played = dict[int, list[Step]]


async def _play_all(
    connect: Callable[[], Coroutine[Any, Any, Connection]], played: Played, sequences: Iterable[int], concurrent: int
) -> None:
    seeds = iter(sequences)

    async def some() -> None:
        side = Side(await connect())
        await side.open()
        for seed in seeds:
            played[seed] = await play(side, seed)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(concurrent):
            tasks.create_task(some())


def in_memory() -> Played:
    """Plays all sequences on the in-memory server."""
    world, played = World(0), Played()
    network = Network(world)
    server = MemoryServer(world, network)
    server.start()

    async def connect() -> Connection:
        client = SimulatedClient()
        await client.connect([], inbox_prefix="_INBOX", disconnected_cb=None, reconnected_cb=None)
        return cast(Connection, client)

    process = Process(world, network, "contract", lambda: _play_all(connect, played, range(SEQUENCES), CONCURRENT))
    process.start()
    world.run(100_000.0, stop=lambda: bool(process.exits))
    assert process.exits == [None], process.exits
    return played


async def _really(url: str, sequences: Iterable[int], concurrent: int) -> Played:
    played, clients = Played(), list[NatsClient]()

    async def connect() -> Connection:
        clients.append(await nats.connect(url))
        return cast(Connection, clients[-1])

    try:
        await _play_all(connect, played, sequences, concurrent)
    finally:
        for client in clients:
            await client.close()
    return played


def test_both_servers_answer_the_same_to_random_sequences(tmp_path: Path) -> None:
    with running_server(tmp_path / "together") as server:
        real = asyncio.run(_really(server.url, range(SEQUENCES), CONCURRENT))
    assert len(real) == SEQUENCES
    simulated = in_memory()
    differ = [seed for seed in simulated if simulated[seed] != real[seed]]
    # nats-server counts the pending messages of a consumer beside its requests. Under load it rarely counts one twice.
    assert len(differ) <= MAX_REPEATED, differ
    with running_server(tmp_path / "alone") as server:
        real |= asyncio.run(_really(server.url, differ, 1))
    for seed, steps in simulated.items():
        for number, (answered, expected) in enumerate(zip(steps, real[seed], strict=True)):
            assert answered == expected, f"sequence {seed}, step {number}: {[step.request for step in steps[:number]]}"
