"""Why the response wasn't decided earlier: the reports before the decision in a bundle, each with the rule that held it back."""

from __future__ import annotations

from services.cli.evidence.bundle import Verified
from services.cli.explain.refold import EarlierReport, Refold, StoredAlert
from services.cli.explain.why_not import HeldBackBy
from services.cli.report import formats
from services.cli.report.facts import DecidedAlert
from services.cli.report.words import Words
from services.common.clock import MeshClock
from services.common.messaging import flow
from services.common.messaging.delivered import Delivered
from services.common.messaging.streams import LogMetadata
from services.dispatch.evidence.model import MARK_SUBJECT, StoredMessage
from tandem.common.v1 import log_pb2

SHOWN = 12
"""Number of reports shown: the last ones before the decision."""
_TICK = log_pb2.LogEntry(tick=log_pb2.Tick()).SerializeToString()
_REASONS = {
    HeldBackBy.NOT_IN_FORCE: "명령이 아직 유효하지 않음",
    HeldBackBy.NO_POSITION: "한쪽의 위치가 없음",
    HeldBackBy.FAR: "안에 있을 확률이 1 % 미만",
    HeldBackBy.UNLIKELY: "안에 있을 확률이 출동 기준보다 낮음",
    HeldBackBy.UNCONFIRMED: "위치가 갑자기 바뀌었고 이를 확인하는 둘째 위치가 아직 없음",
    HeldBackBy.LATE: "늦게 도착한 보고이며, 이 보고만으로는 새로 드러난 접근이 없음",
    HeldBackBy.VAGUE: "정확도가 나빠 안에 있는지 알 수 없음",
    HeldBackBy.ENCOUNTER: "허가된 대면 중",
}


def reports(verified: Verified, decisive: DecidedAlert | None) -> list[EarlierReport]:
    """The evaluated reports of both sides before the first demand to respond. Empty if the bundle can't be refolded, or if that demand
    isn't the entry of a ring."""
    if decisive is None or verified.replay is None:
        return []
    manifest, alert = verified.manifest, decisive.alert
    clock, log = manifest["clock"], manifest["log"]
    log_meta = LogMetadata(log["partition"] + 1, MeshClock(clock["rate"], clock["anchor_ms"]), log["log_id"])
    entries = [record for record in verified.records if record.stream == flow.log_stream(log["partition"])]
    refold = Refold(StoredAlert(alert, alert.SerializeToString(), None), log_meta, entries[0].sequence)
    for record in entries:
        if record.sequence <= alert.sequence:
            refold.fold(_delivered(record, log["partition"], log["window_stamp_ms"]))
    return refold.earlier[-SHOWN:]


def rows(found: list[EarlierReport], words: Words) -> list[list[str]]:
    """Rows of the reports: arrival, device, probability, and what held the entry back."""
    return [
        [
            formats.clock_time(report.arrived_ms),
            report.device_id,
            "-" if report.evaluation.p is None else formats.percent(report.evaluation.p),
            _reason(report.evaluation.held_back_by, words),
        ]
        for report in found
    ]


def _reason(held_back_by: HeldBackBy | None, words: Words) -> str:
    if held_back_by is None:
        return words.text("이미 진입으로 판단됨", "entered already")
    return words.text(_REASONS[held_back_by], held_back_by.value)


def _delivered(record: StoredMessage, partition: int, window_stamp_ms: int) -> Delivered:
    """A record as the log's reader would get it. A record without content only makes time pass."""
    subject, data = record.subject, record.data
    if subject == MARK_SUBJECT:
        subject, data = flow.log_subject(partition, "tick"), _TICK
    stamp_ms = window_stamp_ms if record.premise else record.stamp_ms
    return Delivered(
        subject=subject,
        data=data,
        stream=record.stream,
        sequence=record.sequence,
        stamp_ms=stamp_ms,
        pending=0,
        reply="",
    )
