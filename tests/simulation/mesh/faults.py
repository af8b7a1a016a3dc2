"""Faults of a world, drawn from its seed: crashes, stops, cut and slow edges, broken connections, failing disks, torn tails.

Half of them begin at a random time, half at a moment that matters (`moments`). Every fault ends by itself. Judges ask how long the
mesh has been undisturbed, because a bound on a delay holds only then.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import NamedTuple

from tests.simulation.jetstream.server import SERVER
from tests.simulation.kernel.process import Process
from tests.simulation.mesh.moments import WAITS_S, DirectedFaults, Moment, Strike
from tests.simulation.mesh.processes import EVALUATORS, LEGS, SERVICES, Mesh

GAP_S = (10.0, 140.0)
"""Least and greatest time between the beginnings of two faults, seconds."""
FIRST_S = 40.0
"""Time of the first fault, when all services have started, seconds."""
CALM_END_S = 240.0
"""Time at the end of a simulation in which no fault begins, seconds. The last one may need a minute of it."""
WITH_DATABASE = ("registry", *LEGS)
EDGES = (
    *((service, SERVER) for service in SERVICES),
    *((leg, evaluator) for leg in LEGS[:2] for evaluator in EVALUATORS),
    ("dispatch-probation", "ingest"),
    ("head-end", "ingest"),
    ("desk-probation", "dispatch-probation"),
    ("desk-police", "dispatch-police"),
    ("agencies", "registry"),
    ("reviewer", "registry"),
    ("supervisor", "dispatch-police"),
)


class _Armed(NamedTuple):
    """A strike that waits for its moment."""

    number: int
    """Number of the fault."""
    until_s: float
    """When it gives up waiting, seconds since the world's start."""
    strike: Strike


class Faults:
    """Makes faults until the calm end."""

    def __init__(self, mesh: Mesh, *, duration_s: float, torn_tails: bool) -> None:
        self._mesh = mesh
        self._world = mesh.world
        self._end_s = duration_s - CALM_END_S
        self._kinds: list[Callable[[], float]] = [
            self._crash,
            self._crash,
            self._crash_all,
            self._crash_server,
            self._pause,
            self._pause_server,
            self._cut,
            self._cut,
            self._slow,
            self._sever,
            self._disk_errors,
            self._flood,
        ]
        self._kinds += [self._strike] * len(self._kinds)
        self.loses_messages = torn_tails
        """Whether the server may lose its newest messages."""
        if torn_tails:
            self._kinds += [self._tear, self._tear] + [self._tear_soon] * 5
        self.directed = DirectedFaults(mesh)
        self._armed: list[_Armed] = []
        self._checkpointed: set[str] = set()
        """Evaluators that have written a checkpoint since the last decision."""
        self._random = mesh.world.random
        self._until_s = 0.0
        """When the last fault ends or ended, seconds since the world's start."""
        self._rests_until_s = 0.0
        """Until then no fault is made, seconds since the world's start: those that are drawn meanwhile are left out."""
        self.left_out: frozenset[int] = frozenset()
        """Numbers of the faults, from 0, that are drawn and not made."""
        self._drawn = 0
        self.made: list[str] = []
        """Faults so far, for the reader of a failure."""
        self.on_flood: Callable[[Random], None] = lambda _: None
        """Called to let a device deliver everything that it has kept, with the randomness of the fault."""
        self.on_torn: Callable[[str, int], None] = lambda _stream, _first_lost: None
        """Called with a stream and the first sequence that it has lost, before the server starts again."""

    def start(self) -> None:
        """Plans the first fault."""
        for process in self._mesh.services:
            process.skew_ns = int(self._world.between(-0.2, 0.2) * 1e9)
        self._world.after(FIRST_S + self._world.between(*GAP_S) / 2, self._next)

    def _next(self) -> None:
        if self._world.elapsed_s >= self._end_s:
            return
        # A fault has randomness of its own, so that all others stay as they are if one is left out.
        self._random = Random(f"fault {self._drawn} of {self._world.seed}")
        gap_s = self._between(*GAP_S)
        if self._drawn not in self.left_out and self._world.elapsed_s >= self._rests_until_s:
            self._disturb(self._random.choice(self._kinds)())
        self._drawn += 1
        self._world.after(gap_s, self._next)

    def _disturb(self, lasts_s: float) -> None:
        self._until_s = max(self._until_s, self._world.elapsed_s + lasts_s)

    def moment(self, moment: Moment, process: str = "") -> None:
        """Lets the strikes that wait for a moment happen shortly after it. `process` is the process that the moment concerns."""
        if moment is Moment.DECISION:
            self._checkpointed.clear()
        now_s = self._world.elapsed_s
        waiting = [armed for armed in self._armed if now_s < min(armed.until_s, self._end_s)]
        self._armed = []
        for armed in waiting:
            if armed.strike.moment is moment and armed.strike.process in ("", process):
                self._world.after(armed.strike.delay_s, partial(self._make, armed))
            else:
                self._armed.append(armed)

    def note_checkpoint(self, evaluator: str) -> None:
        """Notes that an evaluator has written a checkpoint."""
        self._checkpointed.add(evaluator)
        if len(self._checkpointed) == len(EVALUATORS):
            self.moment(Moment.CHECKPOINTS)

    def _make(self, armed: _Armed) -> None:
        now_s = self._world.elapsed_s
        if self._rests_until_s <= now_s < self._end_s:
            self._note(armed.strike.text, armed.number)
            self._disturb(armed.strike.make())
            if armed.strike.rests_s:
                self._rests_until_s = now_s + armed.strike.rests_s

    def _between(self, least: float, most: float) -> float:
        return self._random.uniform(least, most)

    @property
    def calm_s(self) -> float:
        """For how long no fault has been active and all processes have been up, seconds. 0 during a fault."""
        now_s = self._world.elapsed_s
        if now_s < self._until_s or not self._mesh.server.is_up:
            return 0.0
        since_s = self._until_s
        for process in self._mesh.services:
            if not process.is_up:
                return 0.0
            since_s = max(since_s, process.started_s)
        return now_s - since_s

    def _note(self, text: str, number: int | None = None) -> None:
        self.made.append(f"{self._drawn if number is None else number:4} {self._world.elapsed_s:10.3f} {text}")
        self._world.note(f"fault {text}")

    def _later(self, seconds: float, action: Callable[[], None]) -> float:
        self._world.after(seconds, action)
        return seconds

    # ── kinds: each begins a fault and returns how long it lasts, seconds ───────────────────────────────────────────

    def _any(self) -> Process:
        actors = [name for name in self._mesh.processes if name not in (*SERVICES, "setup")]
        names = SERVICES if self._random.random() < 0.9 or not actors else actors
        return self._mesh.processes[self._random.choice(names)]

    def _crash(self) -> float:
        process, callbacks = self._any(), self._random.randrange(1, 400)
        self._note(f"crash {process.name} after {callbacks} callbacks")
        process.crash_within(callbacks)
        return 10.0

    def _crash_all(self) -> float:
        self._note("crash of all services")
        for process in self._mesh.services:
            process.crash_within(self._random.randrange(1, 200))
        return 15.0

    def _crash_server(self) -> float:
        if not self._mesh.server.is_up:
            return 0.0
        self._note("crash of the server")
        self._mesh.server.kill()
        return self._later(self._between(0.2, 6.0), self._mesh.server.restart)

    def _strike(self) -> float:
        self._arm(self.directed.drawn(self._random))
        return 0.0

    def _arm(self, strike: Strike) -> None:
        self._note(f"waits for {strike.moment.value}, then: {strike.text}")
        self._armed.append(_Armed(self._drawn, self._world.elapsed_s + WAITS_S, strike))

    def _pause(self) -> float:
        process, seconds = self._any(), self._between(0.5, 15.0)
        self._note(f"stop {process.name} for {seconds:.1f} s")
        process.pause(seconds)
        return seconds

    def _pause_server(self) -> float:
        seconds = self._between(0.5, 8.0)
        self._note(f"stop of the server for {seconds:.1f} s")
        self._mesh.server.paused_until_ns = self._world.now_ns + int(seconds * 1e9)
        return seconds

    def _cut(self) -> float:
        (a, b), seconds = self._random.choice(EDGES), self._between(0.2, 60.0)
        self._note(f"cut {a} from {b} for {seconds:.1f} s")
        self._mesh.network.cut(a, b)
        return self._later(seconds, partial(self._mesh.network.heal, a, b))

    def _slow(self) -> float:
        (a, b), seconds = self._random.choice(EDGES), self._between(1.0, 60.0)
        most_s = self._between(0.02, 2.0)
        self._note(f"up to {most_s:.2f} s of delay between {a} and {b} for {seconds:.1f} s")
        self._mesh.network.edge(a, b).delay_s = (0.001, most_s)
        return self._later(seconds, partial(self._mesh.network.heal, a, b))

    def _sever(self) -> float:
        a, b = self._random.choice(EDGES)
        self._note(f"connections between {a} and {b} break")
        self._mesh.network.sever(a, b)
        return 1.0

    def _disk_errors(self) -> float:
        process = self._mesh.processes[self._random.choice((*WITH_DATABASE, *EVALUATORS))]
        share, seconds = self._between(0.02, 0.6), self._between(1.0, 20.0)
        self._note(f"{share:.0%} of the statements of {process.name} fail for {seconds:.1f} s")
        process.disk_error_share = share

        def end() -> None:
            process.disk_error_share = 0.0

        return self._later(seconds, end)

    def _flood(self) -> float:
        self._note("a device delivers thousands of kept reports")
        self.on_flood(self._random)
        return 0.0  # a flood must disturb nobody

    def _tear(self) -> float:
        return self._lose(self._random, 0.3)

    def _tear_soon(self) -> float:
        random, moment = self._random, self._random.choice((Moment.ALERT, Moment.STEP))
        make, delay_s = partial(self._lose, random, 0.6), random.choice((0.05, 3.0, 12.0)) * random.random()
        self._arm(Strike(moment, "the server crashes and loses the newest messages", delay_s, make))
        return 0.0

    def _lose(self, random: Random, share: float) -> float:
        """Kills the server, and lets a share of its streams lose up to 5 of their newest messages."""
        server = self._mesh.server
        if not server.is_up:
            return 0.0
        names = [name for name, stream in server.streams.items() if stream.messages and name != "LOG_META"]
        torn = {name: random.randrange(1, 6) for name in names if random.random() < share}
        self._note(f"crash of the server, which loses the newest messages: {torn}")
        server.kill()

        def start() -> None:
            if server.is_up:
                return
            first_lost: dict[str, int] = {}
            for name, stored in server.start(torn):
                first_lost[name] = min(stored.sequence, first_lost.get(name, stored.sequence))
            for name, sequence in first_lost.items():
                self.on_torn(name, sequence)

        return self._later(random.uniform(0.2, 6.0), start)
