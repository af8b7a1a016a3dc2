"""Redacted shares of the log: shares that are cut together equal shares that are cut alone, and keep the log's time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.common.clock import MeshClock
from services.common.evidence.model import StoredMessage
from services.common.evidence.redaction import Holders, RedactedLog, Shares, Window
from services.common.messaging.pull import Delivered
from tandem.common.v1 import log_pb2

WEARERS = 3
ENTRIES = st.lists(
    st.tuples(st.integers(0, 9), st.sets(st.integers(0, WEARERS + 1), max_size=3)), min_size=1, max_size=30
)
"""Stamp of each entry, which a new leader may set back, and the wearers whose devices report in it."""
BOUNDS = st.tuples(st.integers(1, 30), st.integers(1, 30))


def delivered(sequence: int, stamp_ms: int, wearers: set[int]) -> Delivered:
    ids = [f"tag-{wearer}" for wearer in sorted(wearers)]
    entry = log_pb2.LogEntry(positions=log_pb2.PositionBatch(device_id=ids, report_id=ids)) if ids else None
    data = entry.SerializeToString() if entry else b""
    return Delivered("log.0.report", data, "LOG_0", sequence, stamp_ms, 0, "")


def window(wearer: int, bounds: tuple[int, int]) -> Window:
    share = RedactedLog(f"wearer-{wearer}", {5}, may_locate_person=True, holders=Holders(MeshClock()))
    share.see_case(log_pb2.CaseSnapshot(tag_device_ids=[f"tag-{wearer}"]))
    return Window(min(bounds), max(bounds), share)


@given(ENTRIES, st.lists(BOUNDS, min_size=WEARERS, max_size=WEARERS))
def test_shares_cut_together_equal_shares_cut_alone_and_keep_the_time(
    entries: list[tuple[int, set[int]]], bounds: list[tuple[int, int]]
) -> None:
    log = [delivered(number, *entry) for number, entry in enumerate(entries, 1)]
    together = [window(wearer, bounds[wearer]) for wearer in range(WEARERS)]
    shares = Shares(together)
    for message in log:
        shares.consume(message)
    for wearer in range(WEARERS):
        alone = window(wearer, bounds[wearer])
        within = [message for message in log if alone.first <= message.sequence <= alone.last]
        one_share = Shares([alone])
        for message in within:
            one_share.consume(message)
        records = together[wearer].share.records
        assert records == alone.share.records
        mine = {
            message.sequence for message in within if f"tag-{wearer}".encode() in message.data or message.sequence == 5
        }
        assert mine <= {record.sequence for record in records}
        for sequence in mine:
            assert now_ms(records, sequence) == now_ms(within, sequence)


def now_ms(entries: list[StoredMessage] | list[Delivered], sequence: int) -> int:
    """Mesh time of the fold at an entry."""
    return max(entry.stamp_ms for entry in entries if entry.sequence <= sequence)


def test_an_order_without_an_end_names_the_holders_of_its_devices() -> None:
    for valid_until_ms, is_held in ((0, True), (5, False)):
        holders = Holders(MeshClock())
        message = Delivered("log.0.case", b"", "LOG_0", 1, 10, 0, "")
        case = log_pb2.CaseSnapshot(
            case_id="c", version=1, wearer_id="wearer-1", tag_device_ids=["tag-1"], valid_until_ms=valid_until_ms
        )
        holders.see_case(message, case)
        assert bool(holders._held) is is_held
