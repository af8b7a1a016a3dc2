"""Words and formats of a report in Korean and English: of alerts, steps, grounds, times and distances. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from services.common.alert_phases import AlertPhase, phase_of
from services.common.times import KOREA
from services.common.words import (
    ALERT_PHASE_WORDS,
    ALERT_WORDS,
    ARTICLE_WORDS,
    CLOSE_CAUSE_WORDS,
    CONTACT_STATE_WORDS,
    DEMAND_WORDS,
    EQUIPMENT_WORDS,
    ESCALATION_REASON_WORDS,
    HELD_BACK_WORDS,
    LEG_WORDS,
    NOTE_KIND_WORDS,
    NOTED_RESULT_WORDS,
    OFFICER_NEEDS_HELP,
    STATE_WORDS,
    TASK_WORDS,
    UNIT_STATE_WORDS,
    WARNING_FLAG_WORDS,
    Word,
    in_small_letters,
    keyed,
    within_a_line,
)
from services.court.explain.refold import HeldBackBy
from tandem.common.v1 import alert_pb2
from tandem.dispatch.v1 import contact_pb2, dispatch_pb2, notes_pb2

LANGUAGES = ("ko", "en")
"""Languages of a report."""


_STATES = within_a_line(STATE_WORDS)


def _numbered(prefix: str, words: Mapping[str, Word], numbers: Iterable[tuple[str, int]]) -> dict[str, Word]:
    """Words by a prefix and the number of their name in an enum, since the steps of a chain hold the numbers."""
    return {f"{prefix}_{number}": words[name] for name, number in numbers if name in words}


WORDS: Mapping[str, tuple[str, str]] = {
    # ── sections ─────────────────────────────────────────────────────────────────────────────────────────────────────
    "title": ("접근금지 명령 사건 보고서", "Report on an incident under a restraining order"),
    "summary": ("요약", "Summary"),
    "order": ("명령과 근거", "Order and ground"),
    "course": ("시간 순 경과", "Minute by minute"),
    "maps": ("지도", "Maps"),
    "about_maps": (
        "점은 장치가 보고한 위치이고, 원은 마지막 위치의 정확도입니다. "
        "선은 점을 시간순으로 이은 것으로 실제 이동 경로가 아닐 수 있으며, 3분 넘게 떨어진 점은 잇지 않습니다.",
        "Dots are positions that a device reported, and the circle is the accuracy of the last one. Lines join dots in the order of "
        "their times and needn't be the way that was taken; dots more than 3 minutes apart aren't joined.",
    ),
    "decision": ("판단과 그 불확실성", "The decision, with its uncertainties"),
    "why_not_earlier": ("출동 판단이 더 일찍 나오지 않은 까닭", "Why the response wasn't decided earlier"),
    "at": ("도착", "Arrived"),
    "probability": ("안에 있을 확률", "Probability inside"),
    "held_back_by": ("진입으로 판단되지 않은 까닭", "Held back, because"),
    "devices": ("장비", "What each device did"),
    "answers": ("양 기관의 응답", "Answers of both agencies"),
    "agency": ("기관", "Agency"),
    "subject": ("대상", "About"),
    "answer": ("답변", "Answer"),
    "answered_by": ("처리자", "By"),
    "answered_at": ("시각", "Time"),
    "after_offer": ("요청 후", "After the offer"),
    "authenticity": ("기록의 진정성과 검증 방법", "Authenticity of the record, and how to verify it"),
    "page": ("쪽", "page"),
    "no_verdict": (
        "이 문서는 명령 위반 여부를 판단하지 않습니다. 장치와 사람이 남긴 기록과 그 불확실성을 싣습니다.",
        "This document doesn't decide whether the order was violated. It states what was recorded, and how sure that is.",
    ),
    "about_probability": (
        "확률은 양쪽 위치의 오차를 반영한 값으로, 경계를 막 넘은 순간에는 50 % 안팎입니다. "
        "그 순간의 값만으로 위반이 증명되거나 부정되지 않으며, 그 뒤의 위치와 가장 가까운 거리를 함께 보아야 합니다.",
        "A probability follows from the errors of both positions. At the moment at which a boundary is crossed it is about 50 %. "
        "By itself it neither proves nor disproves a violation: read it with the later positions and the least distance.",
    ),
    "times": ("모든 시각은 한국 표준시(UTC+9)입니다.", "All times are Korean standard time (UTC+9)."),
    "exercise": ("훈련: 실제 사건이 아닙니다.", "EXERCISE: this was not a live incident."),
    # ── the head ─────────────────────────────────────────────────────────────────────────────────────────────────────
    "incident": ("사건", "Incident"),
    "for": ("제출 기관", "For"),
    **in_small_letters(within_a_line(LEG_WORDS)),
    "fold": ("판단", "decision"),
    "device": ("장비", "device"),
    "bundle_made": ("증거 묶음 작성", "Evidence bundle made"),
    "made_by": ("작성자", "Made by"),
    "made_for": ("수령자", "Recipient"),
    "legal_basis": ("근거 조문", "Legal basis"),
    "whole": ("기록의 완전성", "Completeness"),
    "is_whole_police": (
        "사건 전 2시간에 피부착자와 피해자에 관해 남은 기록이 모두 있습니다.",
        "All entries about the wearer and the protected persons of the two hours before the incident are enclosed.",
    ),
    "is_whole_probation": (
        "사건 전 2시간에 피부착자에 관해 남은 기록이 모두 있습니다. 피해자의 위치는 없습니다.",
        "All entries about the wearer of the two hours before the incident are enclosed. Positions of the protected persons aren't.",
    ),
    "not_whole": (
        "주의: 사건 전 기록의 일부가 이미 보존기간이 지나 없습니다.",
        "ATTENTION: the log had already lost earlier entries.",
    ),
    "not_ended": (
        "주의: 이 묶음을 만들 때 사건이 끝나지 않았습니다.",
        "ATTENTION: the incident had not ended when the bundle was made.",
    ),
    # ── order ────────────────────────────────────────────────────────────────────────────────────────────────────────
    "order_id": ("명령 번호", "Order"),
    "wearer": ("피부착자", "Wearer"),
    "protected": ("피해자", "Protected person"),
    "place": ("보호장소", "Protected place"),
    "validity": ("유효기간", "Validity"),
    "no_end": ("본안 결정 시까지", "until the decision"),
    "rings": ("거리 기준", "Rings"),
    "case": ("연계 사건(버전)", "Joint case (version)"),
    "encounter": ("허가된 대면", "Authorised encounter"),
    "encounters": ("허가된 대면", "Authorised encounters"),
    "no_case": (
        "이 묶음에는 명령의 기록이 없습니다.",
        "The bundle holds no record of an order.",
    ),
    "ids_only": (
        "이 문서에는 이름이 없습니다. 번호의 주인은 각 기관의 기록에 있습니다.",
        "This document holds no name. Each agency's records say whose the ids are.",
    ),
    # ── demands ──────────────────────────────────────────────────────────────────────────────────────────────────────
    **within_a_line(DEMAND_WORDS),
    # ── alerts ───────────────────────────────────────────────────────────────────────────────────────────────────────
    **within_a_line(ALERT_WORDS),
    "RING_UNWATCHED": (
        "기록 변경 또는 명령 종료로 거리 감시 종료(이탈이 확인된 것은 아님)",
        "ring no longer watched, because a record changed or the order ended (no departure was seen)",
    ),
    "other_alert": ("그 밖의 경보", "other alert"),
    **keyed("phase_", ALERT_PHASE_WORDS),
    "about_UNCONFIRMED": (
        "기록 변경·명령 종료 또는 장치 없음, 상황 해소가 확인된 것은 아님",
        "a record changed, the order ended or no device was left; no report shows that it is over",
    ),
    # ── anomalies ────────────────────────────────────────────────────────────────────────────────────────────────────
    "anomaly_JUMP": ("이동으로 볼 수 없는 위치 변화", "a change of position that no movement explains"),
    "anomaly_VAGUE": ("오차가 커서 구역 안인지 알 수 없음", "accuracy too poor to say whether it is inside"),
    "anomaly_CLOCK": ("장치 시각이 크게 어긋남", "the device's clock is far off"),
    "anomaly_FROZEN": ("10분 동안 소수점 끝자리까지 똑같은 위치", "positions equal to the last digit for 10 minutes"),
    "anomaly_COPIED": (
        "이전 위치와 소수점 끝자리까지 똑같은 위치",
        "positions equal to earlier ones to the last digit",
    ),
    "anomaly_PRESENCE": ("재택 감독장치의 신호와 위치가 서로 어긋남", "positions contradict a home unit or beacon"),
    # ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────────
    "Notified": _STATES["NOTIFIED"],
    "Offered": _STATES["OFFERED"],
    "Reoffered": ("다시 접수 대기", "offered once more"),
    "NobodyAvailable": _STATES["NOBODY_AVAILABLE"],
    "Escalated": _STATES["ESCALATED"],
    "Received": ("요청 수신", "offer received"),
    "Acknowledged": _STATES["ACKNOWLEDGED"],
    "Rejected": _STATES["REJECTED"],
    "Progressed": ("진행", "progress"),
    "Closed": _STATES["CLOSED"],
    "StoodDown": _STATES["STOOD_DOWN"],
    "LegAbsent": ("상대 기관 무응답", "another leg showed no step in time"),
    "LegReturned": ("상대 기관 응답 재개", "the absent leg shows steps again"),
    "StepsLost": ("조치 기록 유실 확인", "steps were lost from this record"),
    "Flagged": ("피해자 상태 통보", "state of the protected person flagged"),
    "Retargeted": ("대상 이동 통보", "notified that the target moved"),
    "Raced": ("도착 예상 변동", "arrival forecast changed"),
    "wearer_first": within_a_line(ESCALATION_REASON_WORDS)["RACE_LOST"],
    "responder_first": ("출동 인원이 먼저 도착할 전망", "the responder is expected to arrive first"),
    "SceneShared": ("양 기관 목적지가 같은 현장", "both legs have one scene to go to"),
    "SpoofingSuspected": ("위치 조작 의심 통보", "spoofing suspected, desk notified"),
    "PanicCalled": ("피해자 긴급 신고 통보", "panic call of the protected person, desk notified"),
    "PanicWithdrawn": ("피해자 긴급 신고 취소 통보", "panic call taken back, desk notified"),
    "TravelEstimated": ("도착 예상 시간 산정", "travel time estimated"),
    "TargetsShown": ("실시간 위치 열람", "live positions shown to a desk"),
    "Reminded": ("출동팀 독촉", "unit reminded of its next step"),
    "Assured": ("출동팀 계속 진행 확인", "unit said that it goes on"),
    "DistressRaised": (OFFICER_NEEDS_HELP[0], "officer needs help"),
    "DistressEnded": ("긴급 지원 요청 종료", "the call for help ended"),
    "UnitAsked": ("다른 출동팀에도 요청", "another unit asked as well"),
    "NoUnitLeft": ("더 요청할 출동팀 없음", "no further unit to ask"),
    "UnitOfferEnded": ("출동팀 요청 종료", "offer to a unit ended"),
    **_numbered("offer", within_a_line(UNIT_STATE_WORDS), dispatch_pb2.UnitOfferState.items()),
    "SentByRadio": ("무전 지령", "sent by radio"),
    "ContactBegun": within_a_line(TASK_WORDS)["CONTACT"],
    "ContactStepped": ("피부착자 첫 연락 경과", "first contact with the wearer, next state"),
    "NoteAdded": ("상황실 기록", "recorded by the desk"),
    "warning:Offered": ("알림 지시", "warning ordered"),
    "warning:Reoffered": ("새 알림 지시", "another warning ordered"),
    "warning:Escalated": ("알림 재지시", "warning ordered once more"),
    "warning:Acknowledged": ("알림 전달됨", "warning delivered"),
    "warning:StoodDown": ("알림 종료", "warning over"),
    "other_step": ("그 밖의 조치", "other step"),
    **_numbered("state", _STATES, dispatch_pb2.AssignmentState.items()),
    **_numbered("cause", within_a_line(CLOSE_CAUSE_WORDS), dispatch_pb2.CloseCause.items()),
    **_numbered("flag", within_a_line(WARNING_FLAG_WORDS), dispatch_pb2.WarningFlag.items()),
    **_numbered("contact", within_a_line(CONTACT_STATE_WORDS), contact_pb2.ContactState.items()),
    **_numbered("note", within_a_line(NOTE_KIND_WORDS), notes_pb2.NoteKind.items()),
    **_numbered("result", within_a_line(NOTED_RESULT_WORDS), notes_pb2.NotedResult.items()),
    **_numbered("reason", within_a_line(ESCALATION_REASON_WORDS), dispatch_pb2.EscalationReason.items()),
    "plan_1": ("전자장치로 안내, 응답 없으면 전화", "by the tag, then by telephone"),
    "plan_2": ("전화", "by telephone"),
    "plan_3": ("전자장치로만 안내", "by the tag alone"),
    "plan_4": ("안내 횟수 초과로 하지 않음", "none: the contacts are used up"),
    "plan_5": ("지금 여기서는 규정상 연락하지 않음", "none: the rule does not allow it here and now"),
    "plan_6": ("되돌아감", "turned back"),
    **keyed("held_", within_a_line(HELD_BACK_WORDS)),
    # ── equipment ────────────────────────────────────────────────────────────────────────────────────────────────────
    **within_a_line(EQUIPMENT_WORDS),
    "reports": ("보고", "reports"),
    "first_last": ("처음과 마지막 보고", "First and last report"),
    "longest_gap": ("가장 긴 공백", "Longest gap"),
    "accuracy": ("정확도 중앙값", "Median accuracy"),
    "events": ("장비 신호", "Equipment events"),
    "none": ("없음", "none"),
    "no_reports": ("이 묶음에 위치 보고 없음", "no position in the bundle"),
    "reception_records": ("배터리·수신·통신 상태의 기록", "Records of battery, reception and connection"),
    "handling_records": ("스트랩·본체·전원·위치 신호의 기록", "Records of strap, case, power and signals"),
    "no_conclusion": (
        "이 문서는 고장인지 고의인지 결론짓지 않습니다. 어느 기록이든 고장, 주변 환경, 통상적인 사용, 조작에서 나올 수 있습니다. "
        "‘없음’은 이 묶음에 그런 기록이 없다는 뜻입니다.",
        "This document concludes neither fault nor intent. Each record may come from a fault, the surroundings, ordinary use or "
        "tampering. “None” means that the bundle holds no such record.",
    ),
}
"""Each word in the order of LANGUAGES."""


class Words:
    """The words of one language."""

    def __init__(self, language: str) -> None:
        self.language = language
        self._column = LANGUAGES.index(language)

    def __call__(self, name: str) -> str:
        """The word with a name. Raises KeyError if there is none."""
        return WORDS[name][self._column]

    def alert(self, alert: alert_pb2.Alert) -> str:
        """Words for an alert: its kind, and whether it says that what the kind names is over."""
        phase = phase_of(alert)
        word = self.alert_kind(alert_pb2.AlertKind.Name(alert.kind))
        if phase is AlertPhase.BEGUN:
            return word
        ended = f"{word}: {self(f'phase_{phase.value}')}"
        return f"{ended} ({self('about_UNCONFIRMED')})" if phase is AlertPhase.UNCONFIRMED else ended

    def alert_kind(self, kind: str) -> str:
        """Word for a kind of alert. A kind that a newer version knows is an other alert."""
        return self(kind) if kind in WORDS else f"{self('other_alert')} ({kind})"

    def step(self, kind: str) -> str:
        """Word for a kind of step. A kind that a newer version knows is an other step."""
        return self(kind) if kind in WORDS else f"{self('other_step')} ({kind})"

    def step_of(self, leg: str, kind: str) -> str:
        """Word for a kind of step of a leg: a warning is ordered and delivered, while a unit is offered and accepts an assignment.

        The chain of the warning leg doesn't hold what was sent to a person, so no word may claim it.
        """
        name = f"{leg}:{kind}"
        return self(name) if name in WORDS else self.step(kind)

    def numbered(self, name: str, number: object) -> str:
        """Word for a number of an enum. A number that a newer version knows is shown as it is."""
        return self(f"{name}_{number}") if f"{name}_{number}" in WORDS else f"{name} {number}"

    def held_back(self, rule: HeldBackBy | None) -> str:
        """Words for the rule that held the entry of a ring back; None if the ring was entered."""
        return self(f"held_{'ENTERED' if rule is None else rule.name}")

    def duration(self, ms: int) -> str:
        """A duration: seconds with one digit below 2 minutes, then minutes and seconds, and hours and minutes from 2 hours on."""
        if abs(ms) < 120_000:
            return self.text(f"{ms / 1000:.1f}초", f"{ms / 1000:.1f} s")
        whole_s = round(ms / 1000)
        if whole_s < 7_200:
            return self.text(f"{whole_s // 60}분 {whole_s % 60}초", f"{whole_s // 60} min {whole_s % 60} s")
        hours, minutes = whole_s // 3600, whole_s % 3600 // 60
        return self.text(f"{hours}시간 {minutes}분", f"{hours} h {minutes} min")

    def text(self, korean: str, english: str) -> str:
        """The sentence of the report's language."""
        return (korean, english)[self._column]


def to_minute(ms: int) -> str:
    """Date, hour and minute in Korea."""
    return datetime.fromtimestamp(ms // 1000, KOREA).strftime("%Y-%m-%d %H:%M")


def clock_time(ms: int) -> str:
    """Time of day in Korea, to the millisecond."""
    return datetime.fromtimestamp(ms // 1000, KOREA).strftime("%H:%M:%S") + f".{ms % 1000:03d}"


def metres(distance_m: float) -> str:
    """A distance: whole metres below 10 km, else kilometres with one digit."""
    return f"{distance_m:.0f} m" if distance_m < 10_000 else f"{distance_m / 1000:.1f} km"


def percent(share: float) -> str:
    """A probability in percent. Very small and very great ones aren't rounded to 0 or 100."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    return f"{100 * share:.1f} %"


def basis_text(code: str, words: Words) -> str:
    """A legal basis in words, with its code; the code alone if the list of articles doesn't have it."""
    return f"{words.text(*ARTICLE_WORDS[code])} [{code}]" if code in ARTICLE_WORDS else code
