"""What befalls the readers of a mesh, one thing after the other: garbage, duplicates, gaps and sequences that are used again.

Each thing befalls all readers at once, while their processes run or before they start. Whoever asks for the result of one reader gets
all that came before it done first.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from google.protobuf.message import DecodeError

from services.common.messaging import flow, pull
from tandem.common.v1 import alert_pb2
from tests.support.stream_readers.mesh import CHECK_INTERVAL_S, SERVICES, Connection, ReadersMesh
from tests.support.stream_readers.reader import Message, Reader, garbage_for, no_messages

PATIENCE_S = 40.0
"""How long an effect is waited for; on a machine that does much else a start alone takes ten seconds."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One thing that befalls all readers."""

    name: str
    key: str
    """Begins the names of its messages."""
    at_start: bool
    """Before the processes start, else while they run."""


GARBAGE, DUPLICATE, GAP, REUSE = "garbage", "a duplicate", "a gap", "a reused sequence"
PHASES = (
    Phase(GARBAGE, "g", at_start=False),
    Phase(DUPLICATE, "d", at_start=False),
    Phase(GARBAGE, "gs", at_start=True),
    Phase(GAP, "h", at_start=False),
    Phase(GAP, "hs", at_start=True),
    Phase(REUSE, "r", at_start=False),
    Phase(REUSE, "rs", at_start=True),
)


def concerns(phase: Phase, reader: Reader) -> bool:
    """Whether a thing can befall a reader."""
    if not reader.service and phase.at_start:
        return False  # each time that somebody asks is a start of it
    if reader.only_at_start and not phase.at_start:
        return False
    if reader.only_garbage:
        return phase.name == GARBAGE
    return reader.at_reuse or phase.name != REUSE


class Phases:
    """The phases over one mesh, and what became of each reader."""

    def __init__(self, mesh: ReadersMesh, readers: Sequence[Reader]) -> None:
        self._mesh, self._readers = mesh, readers
        self._results: dict[tuple[str, str], str] = {}
        self._done: set[str] = set()

    def result(self, phase: Phase, reader: Reader) -> str:
        """What went wrong with a reader; empty where nothing did."""
        for one in PHASES:
            if one.key not in self._done:
                self._done.add(one.key)
                asyncio.run(self._run(one))
            if one == phase:
                break
        return self._results[phase.key, reader.name]

    async def _run(self, phase: Phase) -> None:
        readers = [reader for reader in self._readers if concerns(phase, reader)]
        self._results |= {(phase.key, reader.name): "" for reader in readers}
        async with self._mesh.connected() as connection:
            run = _Run(self._mesh, connection, phase, readers, self._results)
            await run.heal()
            match phase.name:
                case "garbage":
                    await run.garbage()
                case "a duplicate":
                    await run.duplicates()
                case "a gap":
                    await run.gap()
                case _:
                    await run.reuse()
            await run.check_processes()


class _Run:
    """One phase."""

    def __init__(
        self,
        mesh: ReadersMesh,
        connection: Connection,
        phase: Phase,
        readers: Sequence[Reader],
        results: dict[tuple[str, str], str],
    ) -> None:
        self._mesh, self._connection, self._phase, self._readers = mesh, connection, phase, readers
        self._results = results
        self._logged = {name: len(mesh.log(name)) for name in SERVICES} if phase.key != PHASES[0].key else {}

    async def heal(self) -> None:
        """Has all processes run and be ready; where an earlier phase has broken one, without what broke it."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._all_ready()
        except (TimeoutError, AssertionError):
            self._mesh.kill()
            await self._connection.purge()
            self._mesh.start()
            async with asyncio.timeout(2 * PATIENCE_S):
                await self._all_ready()
        self._pids = {name: service.pid for name, service in self._mesh.services.items()}

    async def _all_ready(self) -> None:
        await asyncio.gather(*(self._mesh.ready(name) for name in SERVICES))

    # ── the phases ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def garbage(self) -> None:
        """What a reader can't use, what stands under a subject that isn't its own, and behind both a sound message."""
        await self._prepare("x")
        self._stop_where_at_start()
        sequences: dict[str, int] = {}
        for reader in self._readers:
            for subject in reader.garbage:
                for data in garbage_for(subject):
                    ack = await self._connection.publish(subject.format(name=self._name(reader, "j")), data)
                    sequences.setdefault(reader.name, ack.seq)
            await self._publish(await reader.misplaced(self._connection, self._name(reader, "m")))
        await self._sound("x")
        await self._start_where_at_start()
        await self._took("x")
        for reader in self._readers:
            if reader.misplaced is no_messages or self._failed(reader):
                continue
            if await reader.took(self._connection, self._name(reader, "m")):
                self._fail(reader, "a message under a subject that isn't its own had an effect")
        await self._each(lambda reader: self._answered(reader, sequences[reader.name]), "no dead letter")

    async def duplicates(self) -> None:
        """Each sound message twice, and another behind it, so that both have been read."""
        await self._prepare("x", "y")
        await self._sound("x")
        await self._sound("x")
        await self._sound("y")
        await self._took("x", "y")
        for reader in self._readers:
            count = await reader.took(self._connection, self._name(reader, "x"))
            if count > 1 and not reader.counts_duplicates:
                self._fail(reader, f"a duplicate had {count} effects")

    async def gap(self) -> None:
        """Messages are stored and gone before they are read, whatever came before them too."""
        await self._prepare("x", readers=[reader for reader in self._readers if reader.service])
        processes = self._mesh.services.values()
        if self._phase.at_start:
            self._mesh.kill()
        else:
            for service in processes:
                os.kill(service.pid, signal.SIGSTOP)
        try:
            for subject in {subject for reader in self._readers for subject in reader.garbage}:
                await self._connection.publish(subject.format(name=f"{self._phase.key}-gone"), b"{}")
            await self._connection.purge()
            await self._sound("x")
        finally:
            for service in processes:
                if not self._phase.at_start:
                    os.kill(service.pid, signal.SIGCONT)
        # Who is asked needs what is there by then: the rest has gone.
        await self._prepare("x", readers=[reader for reader in self._readers if not reader.service])
        await self._start_where_at_start()
        await self._took("x")

    async def reuse(self) -> None:
        """An older store is put back, and other messages get the sequences of those that were read."""
        await self._prepare("old", "new")
        copy = self._mesh.folder / f"store-{self._phase.key}"
        await self._mesh.restart_server(copy_to=copy)
        await self._sound("old")
        running = [reader for reader in self._readers if not reader.only_at_start]
        await self._each(partial(self._took_one, which="old"), "a sound message old had no effect", running)
        self._stop_where_at_start()
        await self._mesh.restart_server(put_back=copy)
        await self._sound("new")
        await self._start_where_at_start()
        await self._took("new")

    async def check_processes(self) -> None:
        """Readiness must stay true: a service that took a sound message runs, is ready and has left no traceback."""
        for name in SERVICES:
            problem = ""
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self._mesh.ready(name)
            except (TimeoutError, AssertionError):
                problem = f"{name} isn't ready"
            if not self._mesh.services[name].runs:
                problem = self._mesh.last_words(name)
            elif "Traceback" in self._mesh.log(name)[self._logged.get(name, 0) :]:
                problem = f"{name} has left a traceback"
            for reader in self._readers:
                if problem and reader.service == name:
                    self._fail(reader, problem)

    # ── their parts ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _name(self, reader: Reader, which: str) -> str:
        return f"{self._phase.key}-{which}-{reader.name}"

    def _stop_where_at_start(self) -> None:
        if self._phase.at_start:
            self._mesh.kill()

    async def _start_where_at_start(self) -> None:
        if self._phase.at_start:
            self._mesh.start()
            self._pids = {name: service.pid for name, service in self._mesh.services.items()}

    async def _publish(self, messages: Iterable[Message]) -> None:
        for subject, data in messages:
            await self._connection.publish(subject, data)

    async def _prepare(self, *which: str, readers: Sequence[Reader] | None = None) -> None:
        """What must have been taken before, by these readers or by all."""
        readers = self._readers if readers is None else readers
        for one in which:
            for reader in readers:
                await self._publish(await reader.prepare(self._connection, self._name(reader, one)))
        for one in which:
            await self._each(partial(self._prepared, which=one), "what comes before wasn't taken", readers)

    async def _prepared(self, reader: Reader, which: str) -> bool:
        return not reader.prepared or await reader.prepared(self._connection, self._name(reader, which)) > 0

    async def _sound(self, which: str) -> None:
        for reader in self._readers:
            if not self._failed(reader):
                await self._publish(await reader.sound(self._connection, self._name(reader, which)))

    async def _took(self, *which: str) -> None:
        for one in which:
            await self._each(partial(self._took_one, which=one), f"a sound message {one} had no effect")

    async def _took_one(self, reader: Reader, which: str) -> bool:
        return await reader.took(self._connection, self._name(reader, which)) > 0

    async def _answered(self, reader: Reader, sequence: int) -> bool:
        """Whether a reader has said that it can't use the message at a sequence, as it says such things."""
        service, event = reader.logs
        if event:
            return f'"event": "{event}"' in self._mesh.log(service)[self._logged.get(service, 0) :]
        return not reader.dead_letter_by or (reader.dead_letter_by, sequence) in await _dead_letters(self._connection)

    async def _each(
        self, is_so: Callable[[Reader], Awaitable[bool]], otherwise: str, readers: Sequence[Reader] | None = None
    ) -> None:
        """Waits until something is so of each of these readers, or of all, that hasn't failed yet."""
        readers = self._readers if readers is None else readers

        async def wait(reader: Reader) -> None:
            error = ""
            try:
                async with asyncio.timeout(PATIENCE_S):
                    while True:
                        try:
                            if await is_so(reader):
                                return
                        except TimeoutError:
                            raise
                        except Exception as found:  # of what is asked: it may be there in a moment
                            error = f": {type(found).__name__}: {found}"
                        if reader.service and not self._mesh.services[reader.service].runs:
                            self._fail(reader, self._mesh.last_words(reader.service))
                            return
                        await asyncio.sleep(CHECK_INTERVAL_S)
            except TimeoutError:
                self._fail(reader, otherwise + error)

        await asyncio.gather(*(wait(reader) for reader in readers if not self._failed(reader)))

    def _failed(self, reader: Reader) -> bool:
        return bool(self._results[self._phase.key, reader.name])

    def _fail(self, reader: Reader, reason: str) -> None:
        if not self._failed(reader):
            self._results[self._phase.key, reader.name] = reason


async def _dead_letters(connection: Connection) -> set[tuple[str, int]]:
    """Readers that have set a message aside, with its sequence."""
    bounds = await connection.bus.bounds_of(flow.DEAD_LETTERS.name)
    found: set[tuple[str, int]] = set()
    if bounds.first <= bounds.last:
        async for message in pull.between(connection.bus, flow.DEAD_LETTERS.name, bounds.first, bounds.last):
            try:
                dead_letters = alert_pb2.DeadLetter.FromString(message.data)
            except DecodeError:
                continue  # garbage for those who read it
            if message.subject.split(".")[1:3] == [flow.DEAD_LETTER_USERS.get(dead_letters.by), dead_letters.by]:
                found.add((dead_letters.by, dead_letters.sequence))
    return found
