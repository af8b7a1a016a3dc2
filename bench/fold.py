"""`python -m bench.fold`: reports that one core folds in a second, with the whole decision.

The crowd is a country. Each wearer has one or more orders. Each order protects a moving person with a phone, and her home, a polygon,
with three rings. Each device reports every 15 s in batches of 100, with an accuracy of 5 to 50 m; walkers and drivers turn at random.
One wearer in a hundred moves about 1.5 km from the person, so that episodes open, close and are evaluated with each report. The figure
includes parsing the log entries, but no server.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.ingestion.reports import BATCH, device_id
from bench.mesh import machine
from bench.mesh.crowd import REPORT_INTERVAL_MS, Crowd
from services.geofence import gc_control, translate
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert, SensingRequest
from services.geofence.domain.entries import FOLD_VERSION, Body, Entry, FoldVersion
from services.geofence.domain.state import State
from services.geofence.gc_control import GarbageCollector
from services.geofence.store import CheckpointStore
from tandem.common.v1 import log_pb2

STARTS_MS = 1_790_000_000_000
WARM_UP_TURNS = 2
SILENCE_TURNS = 12
"""Turns in 3 minutes. All cases are checked together every 3 minutes, so measure a multiple of these turns to count that evenly."""
KEPT_TURNS = 560
"""Turns in 2 h 20 min; the fold drops positions older than 2 h."""
SEED = 7
SPEEDS_MPS = (0.5, 1.4, 1.4, 12.0)
E7_PER_M = 90


@dataclass(frozen=True, slots=True)
class Rate:
    """Result of folding one crowd."""

    turns: list[float]
    """Reports per second of processor time, by turn."""
    reports_per_s: float
    """Reports per second of processor time, over all turns."""
    alerts: int
    requests: int


class Walker:
    """A device that moves at constant speed and turns at random."""

    def __init__(self, crowd: Crowd, device: int, partitions: int, *, rng: random.Random) -> None:
        self.device_id, self.partition = device_id(device), crowd.partition(device, partitions)
        self.lat_e7, self.lon_e7 = (round(degrees * 1e7) for degrees in crowd.place(device, 0))
        self.accuracy_mm = rng.randrange(5_000, 50_000)
        self._step_e7 = rng.choice(SPEEDS_MPS) * E7_PER_M * REPORT_INTERVAL_MS / 1000
        self._bearing = rng.uniform(0, 2 * math.pi)

    def go_on(self, rng: random.Random) -> None:
        """Moves until the next report."""
        self._bearing += rng.gauss(0, 0.6)
        self.lat_e7 += round(self._step_e7 * math.cos(self._bearing))
        self.lon_e7 += round(self._step_e7 * math.sin(self._bearing))


class CrowdFold:
    """Folds the partitions of one crowd in this process."""

    def __init__(self, crowd: Crowd, partitions: int) -> None:
        self._rng = random.Random(SEED)
        self.states = [State(index, "bench") for index in range(partitions)]
        self.alerts = 0
        self.requests = 0
        self.collector = GarbageCollector()
        for index in range(partitions):
            self._step(index, STARTS_MS, FoldVersion(FOLD_VERSION))
        for wearer in range(crowd.wearers):
            partition = crowd.partition(wearer * (1 + crowd.orders), partitions)
            for case in crowd.cases(wearer, STARTS_MS - REPORT_INTERVAL_MS):
                self._step(partition, STARTS_MS, translate.case_of(case))
        self._walkers = [
            Walker(crowd=crowd, device=device, partitions=partitions, rng=self._rng) for device in range(crowd.devices)
        ]
        self._rng.shuffle(self._walkers)

    def turn(self, number: int) -> float:
        """Folds one report of each device; returns reports per second of processor time."""
        entries = list(self._entries(number))
        began_s = time.process_time()
        for stamp_ms, partition, data in entries:
            self._step(partition, stamp_ms, translate.entry_body(data))
            self.collector.count(1)
        return len(self._walkers) / (time.process_time() - began_s)

    def _entries(self, number: int) -> Iterator[tuple[int, int, bytes]]:
        """Log entries of a turn. As in ingest, each batch of reports is split by partition."""
        for first in range(0, len(self._walkers), BATCH):
            stamp_ms = STARTS_MS + number * REPORT_INTERVAL_MS + first * REPORT_INTERVAL_MS // len(self._walkers)
            parts: dict[int, log_pb2.PositionBatch] = {}
            for walker in self._walkers[first : first + BATCH]:
                walker.go_on(self._rng)
                if walker.partition not in parts:
                    parts[walker.partition] = log_pb2.PositionBatch(received_wall_us=stamp_ms * 1000)
                batch = parts[walker.partition]
                batch.device_id.append(walker.device_id)
                batch.report_id.append(f"r-{number}")
                batch.fix_time_ms.append(stamp_ms - self._rng.randrange(200, 900))
                batch.lat_e7.append(walker.lat_e7)
                batch.lon_e7.append(walker.lon_e7)
                batch.accuracy_mm.append(walker.accuracy_mm)
            for partition, batch in parts.items():
                yield stamp_ms, partition, log_pb2.LogEntry(positions=batch).SerializeToString()

    def _step(self, partition: int, stamp_ms: int, body: Body) -> None:
        state = self.states[partition]
        outputs = fold.step(state, Entry(state.sequence + 1, stamp_ms, body))
        self.alerts += sum(isinstance(output, Alert) for output in outputs)
        self.requests += sum(isinstance(output, SensingRequest) for output in outputs)


def measure(crowd: Crowd, partitions: int, *, turns: int) -> Rate:
    """Folds `turns` turns after a warm-up, one partition after another."""
    folding = CrowdFold(crowd, partitions)
    with gc_control.infrequent_collection() as folding.collector:  # as in the evaluator
        rates = [folding.turn(number) for number in range(WARM_UP_TURNS + turns)][WARM_UP_TURNS:]
    return Rate(rates, statistics.harmonic_mean(rates), folding.alerts, folding.requests)


@dataclass(frozen=True, slots=True)
class KeptState:
    """What the state of a crowd costs, once it keeps 2 h of positions."""

    wearer_kib: float
    """Memory for a wearer and the protected persons of their orders, KiB."""
    pause_s: float
    """Longest pause of the evaluator for the fork that writes a checkpoint, seconds."""
    encoded_s: float
    """Processor time to encode all checkpoints, seconds."""
    checkpoint_bytes: int
    """Size of all checkpoints."""


def memory(crowd: Crowd, partitions: int) -> KeptState:
    """Folds 2 h 20 min of a crowd, and measures its state and checkpoints."""
    before = _resident()
    folding = CrowdFold(crowd, partitions)
    for number in range(KEPT_TURNS):
        folding.turn(number)
    gc.collect()
    wearer_kib = (_resident() - before) / crowd.wearers / 1024
    gc.freeze()  # as in the evaluator
    pauses_s = []
    size = 0
    encoded_s = 0.0
    for state in folding.states:
        with tempfile.TemporaryDirectory() as folder:
            store = CheckpointStore(Path(folder))
            began_s = time.perf_counter()
            pending = store.begin(state)
            pauses_s.append(time.perf_counter() - began_s)
            _, status, usage = os.wait4(pending.pid, 0)
            if status:
                raise SystemExit(f"the child that writes a checkpoint ended with status {status}")
            size += sum(path.stat().st_size for path in Path(folder).iterdir())
            encoded_s += usage.ru_utime + usage.ru_stime
    return KeptState(wearer_kib, max(pauses_s), encoded_s, size)


def _resident() -> int:
    """Resident memory of this process, bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    """Runs the benchmark and prints the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wearers", type=int, default=20_000)
    parser.add_argument(
        "--orders", type=int, default=1, help="orders of each wearer, each with a person, a phone and a home"
    )
    parser.add_argument("--partitions", type=int, default=1)
    parser.add_argument(
        "--memory", action="store_true", help="measure the memory of a wearer and a checkpoint after 2 h 20 min"
    )
    parser.add_argument(
        "--turns", type=int, default=2 * SILENCE_TURNS, help="number of reports of each device, 15 s apart"
    )
    arguments = parser.parse_args()
    if arguments.memory:
        kept = memory(Crowd(arguments.wearers, arguments.orders), arguments.partitions)
        print(f"{arguments.wearers} wearers, {arguments.orders} orders each: {kept.wearer_kib:,.0f} KiB a wearer")
        print(
            f"checkpoint: {kept.checkpoint_bytes / 1e6:,.0f} MB, {kept.encoded_s:.1f} s of processor time in the child, "
            f"pause of the evaluator {kept.pause_s * 1000:.0f} ms"
        )
        return
    rate = measure(Crowd(arguments.wearers, arguments.orders), arguments.partitions, turns=arguments.turns)
    print(
        f"{arguments.wearers} wearers, {arguments.orders} orders each, {arguments.partitions} partitions; "
        f"{machine.describe(Path())['cpu']}"
    )
    print(
        f"fold rate: {rate.reports_per_s:,.0f} reports a second of one core; of {len(rate.turns)} turns median "
        f"{statistics.median(rate.turns):,.0f}, least {min(rate.turns):,.0f}, greatest {max(rate.turns):,.0f}; "
        f"{rate.alerts} alerts, {rate.requests} requests to tags"
    )


if __name__ == "__main__":
    main()
