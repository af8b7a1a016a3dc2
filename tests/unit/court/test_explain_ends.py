"""Why `tandem explain` says that something ended: by a report, a record, the end of the order, or time alone."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from services.cli.commands import explain
from services.court.explain.explanation import Explanation
from services.geofence.domain.entries import FOLD_VERSION
from tandem.common.v1 import log_pb2
from tests.support.explained import T0_MS, Log, case_entry

# ── refold ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def shown_of(explained: Explanation, positions: bool) -> str:
    shown = StringIO()
    Console(file=shown, width=160).print(*explain.tables(explained, positions), sep="\n")
    return shown.getvalue()


def tampered(*ends: tuple[float, log_pb2.LogEntry]) -> Log:
    """The strap of the wearer's tag is cut, and then come these entries."""
    story = Log()
    story.add(0, log_pb2.LogEntry(fold_version=log_pb2.FoldVersion(version=FOLD_VERSION)))
    story.add(0, case_entry())
    event = log_pb2.EquipmentReport(
        device_id="t1", report_id="e1", event=log_pb2.STRAP_OPEN, event_time_ms=T0_MS + 5_000
    )
    story.add(5, log_pb2.LogEntry(equipment=event))
    for at_s, entry in ends:
        story.add(at_s, entry)
    return story


def with_tags(*tag_ids: str, until_s: float = 1e9) -> log_pb2.LogEntry:
    entry = case_entry(version=2, until_s=until_s)
    entry.case.tag_device_ids[:] = tag_ids
    return entry


def test_an_end_that_no_report_shows_says_why_it_ended() -> None:
    tick = log_pb2.LogEntry(tick=log_pb2.Tick())
    for ends, why in (
        ([(9.0, with_tags()), (1809.0, tick)], "half an hour has passed since the record of a device ended"),
        ([(9.0, with_tags(until_s=60)), (70.0, tick)], "the order ended: no report shows that it is over"),
    ):
        story = tampered(*ends)
        ended = story.alerts[-1]
        assert (ended.kind.value, ended.unconfirmed) == ("TAMPERED", True)
        explained = story.explain(story.stored(ended))
        shown = shown_of(explained, False)
        assert not explained.differences and "TAMPERED unconfirmed" in shown and why in shown, why


def test_tampering_that_a_dropped_record_ends_names_the_record() -> None:
    story = tampered()
    event = log_pb2.EquipmentReport(
        device_id="t1", report_id="e2", event=log_pb2.JAMMING_SUSPECTED, event_time_ms=T0_MS + 6_000
    )
    story.add(6, log_pb2.LogEntry(equipment=event))
    story.add(9, with_tags())
    ended = story.alerts[-1]
    assert (ended.kind.value, ended.unconfirmed) == ("JAMMED", True)
    assert "a record changed: no report shows that it is over" in shown_of(story.explain(story.stored(ended)), False)


def test_tampering_that_another_tag_ends_names_that_tag() -> None:
    story = tampered((9.0, with_tags("t2")))
    story.at(20, "t2", 5000)
    ended = story.alerts[-1]
    assert (ended.kind.value, ended.incident_ends) == ("TAMPERED", True)
    shown = shown_of(story.explain(story.stored(ended)), False)
    assert "TAMPERED over" in shown and "a whole tag has shown where the wearer is" in shown
