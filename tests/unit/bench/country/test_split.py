"""A log of one partition and the same log split into four: the same alerts but for partition and ids."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from bench.country import split
from bench.country.split import StoredEntry
from services.common.ids import partition_of
from services.geofence.domain.entries import FOLD_VERSION
from services.geofence.domain.state import State
from tandem.common.v1 import log_pb2
from tests.support.geofence.log import case_entry, position, positions_entry

CASES = [str(n) for n in range(1, 9)]
PARTITIONS = 4
MINUTE_MS = 60_000
START_MS = 1_790_000_000_000
NORTH_M = (5_000, 2_500, 1_800, 900, 300, 60, 60, 60, 700, 1_500, 3_000, 5_000, 5_000, 5_000, 5_000, 5_000)
"""How far a wearer is from the protected person in each minute."""


def story(shared_phone: bool) -> list[StoredEntry]:
    """Wearers who come near and leave, each from another minute on; some open the strap, and some fall silent."""
    rng = random.Random(1)
    entries = [StoredEntry(START_MS, log_pb2.LogEntry(fold_version=log_pb2.FoldVersion(version=FOLD_VERSION)))]
    for number in CASES:
        entry = case_entry(number, from_ms=START_MS - 1)
        if shared_phone:
            # One person is protected from all wearers, so that her phone's reports are needed in every partition.
            entry.case.persons[0].person_id = "she"
            entry.case.persons[0].device_ids[:] = ["phone"]
        entries.append(StoredEntry(START_MS, entry))
    phones = ["phone"] if shared_phone else [f"d{number}" for number in CASES]
    for turn in range(2 * (len(NORTH_M) + 8)):
        stamp_ms = START_MS + 1_000 + turn * MINUTE_MS // 2
        reports = [position(phone, stamp_ms - 500, 0.0) for phone in phones]
        for index, number in enumerate(CASES):
            minute = max(0, turn // 2 - index)
            if minute < len(NORTH_M) - (index % 5 == 4) * 8:  # every fifth falls silent near her
                reports.append(position(f"t{number}", stamp_ms - 500, NORTH_M[min(minute, len(NORTH_M) - 1)]))
        rng.shuffle(reports)
        half = len(reports) // 2
        for batch in (reports[:half], reports[half:]):
            entries.append(StoredEntry(stamp_ms, positions_entry(*batch)))
        if turn % 9 == 5:
            event = log_pb2.EquipmentReport(
                device_id=f"t{CASES[turn % len(CASES)]}",
                report_id=f"strap-{turn}",
                event=log_pb2.STRAP_OPEN,
                event_time_ms=stamp_ms,
                received_wall_us=1,
            )
            entries.append(StoredEntry(stamp_ms + 1, log_pb2.LogEntry(equipment=event)))
    return entries


@pytest.mark.parametrize("shared_phone", [False, True])
def test_a_log_split_into_four_decides_the_same(shared_phone: bool) -> None:
    entries = story(shared_phone)
    assert {partition_of(f"w{number}", PARTITIONS) for number in CASES} == set(range(PARTITIONS))
    whole = split.folded(entries, State(0, "log"))
    parts = [split.folded(part, State(n, "log")) for n, part in enumerate(split.split(entries, PARTITIONS))]
    compared = split.compare(whole, parts)
    assert {alert.kind.name for alert in whole} >= {"RING_ENTERED", "RING_CLEARED", "TAMPERED"}
    assert len(whole) > 30 and all(parts)
    assert compared.same, (compared.only_whole[:3], compared.only_split[:3], compared.torn[:3])
    # The ids of all partitions but the first differ: a comparison that let everything pass would show nothing.
    assert {alert.alert_id for alert in whole}.isdisjoint(alert.alert_id for part in parts[1:] for alert in part)


def test_a_lost_a_changed_and_a_torn_alert_are_found() -> None:
    whole = split.folded(story(False), State(0, "log"))
    assert split.compare(whole, [whole]).same
    assert len(split.compare(whole, [whole[1:]]).only_whole) == 1
    later = replace(whole[0], at_ms=whole[0].at_ms + 1)
    compared = split.compare(whole, [[later, *whole[1:]]])
    assert len(compared.only_whole) == len(compared.only_split) == 1
    incident = next(alert for alert in whole if sum(a.incident_id == alert.incident_id for a in whole) > 1)
    torn = [replace(alert, incident_id="other") if alert is incident else alert for alert in whole]
    assert split.compare(whole, [torn]).torn


def test_a_report_goes_to_every_partition_that_needs_it_in_its_order() -> None:
    entries = story(True)
    for partition, part in enumerate(split.split(entries, PARTITIONS)):
        assert [entry.stamp_ms for entry in part] == [entry.stamp_ms for entry in entries]
        cases = {stored.entry.case.wearer_id for stored in part if stored.entry.HasField("case")}
        assert cases == {f"w{number}" for number in CASES if partition_of(f"w{number}", PARTITIONS) == partition}
        tags = {d for stored in part for d in stored.entry.positions.device_id if d != "phone"}
        assert tags <= {wearer.replace("w", "t") for wearer in cases}
        assert sum("phone" in stored.entry.positions.device_id for stored in part) == sum(
            "phone" in stored.entry.positions.device_id for stored in entries
        )
