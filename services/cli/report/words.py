"""Words of a report in Korean and English: the practice's words for alerts, steps, devices and grounds. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping

from services.common.alert_phases import AlertPhase, phase_of
from tandem.common.v1 import alert_pb2

LANGUAGES = ("ko", "en")
"""Languages of a report."""

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
    "answers": ("양 기관의 접수", "Acknowledgements"),
    "agency": ("기관", "Agency"),
    "subject": ("대상", "About"),
    "answer": ("답변", "Answer"),
    "answered_by": ("처리자", "By"),
    "answered_at": ("시각", "Time"),
    "after_offer": ("지령 후", "After the offer"),
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
    "police": ("경찰", "police"),
    "probation": ("보호관찰소", "probation"),
    "warning": ("피해자 알림", "warnings"),
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
    "RECORD": ("기록", "recorded"),
    "WARN": ("피해자 알림", "warn the protected person"),
    "NOTIFY": ("양 기관 통보", "notify both desks"),
    "RESPOND": ("양 기관 출동", "both agencies respond"),
    # ── alerts ───────────────────────────────────────────────────────────────────────────────────────────────────────
    "RING_ENTERED": ("거리 안 진입", "ring entered"),
    "RING_CLEARED": ("거리 밖 이탈 확인", "ring cleared"),
    "RING_UNWATCHED": (
        "기록 변경 또는 명령 종료로 거리 감시 종료(이탈이 확인된 것은 아님)",
        "ring no longer watched, because a record changed or the order ended (no departure was seen)",
    ),
    "TAMPERED": ("전자장치 훼손 의심", "tampering with the tag suspected"),
    "PANIC": ("피해자 긴급호출", "panic call of the protected person"),
    "LOW_BATTERY": ("배터리 부족", "low battery"),
    "JAMMED": ("전파 방해 의심", "jamming suspected"),
    "DEVICE_OFF": ("전원 꺼짐", "device switched off"),
    "PROTECTED_DEVICE_LOST": ("피해자 단말 신호 없음", "no device of the protected person reports"),
    "SILENT": ("전자장치 신호 없음", "tag silent"),
    "HEARD_AGAIN": ("전자장치 신호 재개", "tag reports again"),
    "UNKNOWN_NEAR": ("위치 불명, 접근 가능성", "position unknown, possibly near"),
    "CONTACT_PREDICTED": ("접촉 예상", "contact predicted"),
    "IMPLAUSIBLE": ("위치 신뢰 불가", "implausible positions"),
    "DISTANCE_CHANGED": ("거리 변동", "distance changed"),
    "OUTAGE": ("통신 장애", "outage"),
    "ACCOUNT_AMENDED": ("접근 기록 정정", "account amended"),
    "SPOOFING_SUSPECTED": ("위치 조작 의심", "spoofing suspected"),
    "LATE_EVIDENCE": ("늦게 도착한 증거", "late evidence"),
    "NOTICE_ENDED": ("법무부 통지 종료", "the Ministry's notice ended"),
    "NOT_FITTED": ("지정 일시까지 전자장치 미부착", "no tag fitted by the court's time"),
    "TAG_LAPSED": ("기록상 부착 장치 없음", "tag ended in the records"),
    "TAG_REMOVAL": ("전자장치 일시 분리 시작", "authorised removal of the tag begins"),
    "TAG_REMOVED": ("전자장치 일시 분리됨", "tag removed with permission"),
    "TAG_REFITTED": ("전자장치 재부착됨", "tag refitted"),
    "other_alert": ("그 밖의 경보", "other alert"),
    "phase_OVER": ("종료", "over"),
    "phase_UNCONFIRMED": (
        "기록 변경·명령 종료 또는 장치 없음으로 종료(상황 해소가 확인된 것은 아님)",
        "ended because a record changed, the order ended or no device was left (no report shows that it is over)",
    ),
    "phase_CHANGED": ("변동 기록", "a change, for the record"),
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
    "Notified": ("통보", "notified"),
    "Offered": ("출동 지령", "offered"),
    "Reoffered": ("다시 출동 지령", "offered once more"),
    "NobodyAvailable": ("출동 가능 인원 없음", "nobody available"),
    "Escalated": ("다음 순번으로 지령", "escalated"),
    "Received": ("지령 수신", "offer received"),
    "Acknowledged": ("접수", "acknowledged"),
    "Rejected": ("거절", "refused"),
    "Progressed": ("진행", "progress"),
    "Closed": ("종결", "closed"),
    "StoodDown": ("상황 해제", "stood down"),
    "LegAbsent": ("상대 기관 조치 없음", "another leg showed no step in time"),
    "LegReturned": ("상대 기관 조치 재개", "the absent leg shows steps again"),
    "StepsLost": ("조치 기록 유실 확인", "steps were lost from this record"),
    "Flagged": ("피해자 상태 통보", "state of the protected person flagged"),
    "Retargeted": ("대상 이동 통보", "notified that the target moved"),
    "Raced": ("도착 예상 변동", "arrival forecast changed"),
    "SceneShared": ("양 기관 목적지가 같은 현장", "both legs have one scene to go to"),
    "SpoofingSuspected": ("위치 조작 의심 통보", "spoofing suspected, desk notified"),
    "TravelEstimated": ("도착 예상 시간 산정", "travel time estimated"),
    "TargetsShown": ("실시간 위치 열람", "live positions shown to a desk"),
    "Reminded": ("출동팀 독촉", "unit reminded of its next step"),
    "Assured": ("출동팀 계속 진행 확인", "unit said that it goes on"),
    "DistressRaised": ("출동 직원 긴급 지원 요청", "an officer called for help"),
    "DistressEnded": ("긴급 지원 요청 종료", "the call for help ended"),
    "ContactBegun": ("피부착자 첫 연락", "first contact with the wearer"),
    "ContactStepped": ("피부착자 첫 연락 경과", "first contact with the wearer, next state"),
    "NoteAdded": ("상황실 기록", "recorded by the desk"),
    "warning:Offered": ("알림 지시", "warning ordered"),
    "warning:Reoffered": ("새 알림 지시", "another warning ordered"),
    "warning:Escalated": ("알림 재지시", "warning ordered once more"),
    "warning:Acknowledged": ("알림 전달됨", "warning delivered"),
    "warning:StoodDown": ("알림 종료", "warning over"),
    "other_step": ("그 밖의 조치", "other step"),
    "state_6": ("출동", "dispatched"),
    "state_7": ("이동 중", "en route"),
    "state_8": ("현장 도착", "on scene"),
    "state_9": ("신병 확보", "apprehended"),
    "cause_1": ("위반 확인", "breach confirmed"),
    "cause_2": ("위치 오류", "false position"),
    "cause_3": ("장비 문제", "equipment"),
    "cause_4": ("허가된 대면", "authorised encounter"),
    "cause_5": ("훈련", "exercise"),
    "cause_6": ("기타", "other"),
    "cause_7": ("현장에 아무도 없음", "nobody found"),
    "flag_1": ("알림 수신 확인 없음", "no receipt of a warning"),
    "flag_2": ("연락 수단 없음", "no way to reach her"),
    "flag_3": ("강요 상황 신호", "sign of duress"),
    "flag_4": ("연락됨", "reached"),
    "reason_1": ("단말 미수신", "not received by the machine"),
    "reason_2": ("기한 내 미접수", "not answered in time"),
    "reason_3": ("기한 내 출동 지령 없음", "no unit dispatched in time"),
    "reason_4": ("거절", "refused"),
    "reason_5": ("출동 가능 인원 없음", "nobody available"),
    "reason_6": ("대원 근무 종료", "unit off duty"),
    "reason_7": ("대상 이동", "target moved"),
    "reason_8": ("피부착자가 먼저 도착할 수 있음", "the wearer may arrive first"),
    "reason_9": ("기한 내 미출발", "not on its way in time"),
    "reason_10": ("예상 시간 내 미도착", "not there in its travel time"),
    "reason_11": ("현장 무응답", "no word from the scene"),
    "plan_1": ("전자장치로 안내, 응답 없으면 전화", "by the tag, then by telephone"),
    "plan_2": ("전화", "by telephone"),
    "plan_3": ("전자장치로만 안내", "by the tag alone"),
    "plan_4": ("안내 횟수 초과로 하지 않음", "none: the contacts are used up"),
    "plan_5": ("지금 여기서는 규정상 연락하지 않음", "none: the rule does not allow it here and now"),
    "plan_6": ("되돌아감", "turned back"),
    "contact_1": ("안내 전송", "sent"),
    "contact_2": ("전화 필요", "call due"),
    "contact_3": ("연락됨", "contacted"),
    "contact_4": ("되돌아감", "turned back"),
    "contact_5": ("응답 없음", "no answer"),
    "contact_6": ("안내 횟수 초과", "contacts used up"),
    "note_1": ("메모", "note"),
    "note_2": ("피부착자 통화", "call to the wearer"),
    "note_3": ("피해자 통화", "call to the protected person"),
    "note_4": ("상대 기관 통화", "call to the other desk"),
    "note_5": ("대원 통화", "call to a unit"),
    "note_6": ("그 밖의 통화", "another call"),
    "result_1": ("통화함", "spoke"),
    "result_2": ("받지 않음", "no answer"),
    # ── equipment ────────────────────────────────────────────────────────────────────────────────────────────────────
    "STRAP_OPEN": ("스트랩 열림 또는 절단", "strap opened or cut"),
    "STRAP_CLOSED": ("스트랩 닫힘", "strap closed"),
    "CASE_OPEN": ("본체 열림", "case opened"),
    "CASE_CLOSED": ("본체 닫힘", "case closed"),
    "BATTERY_LOW": ("배터리 부족", "battery low"),
    "PANIC_BUTTON": ("긴급호출 누름", "panic button pressed"),
    "PANIC_CANCELLED": ("긴급호출 취소", "panic call cancelled"),
    "JAMMING_SUSPECTED": ("전파 방해 의심", "jamming suspected"),
    "JAMMING_OVER": ("전파 방해 해소", "jamming over"),
    "CHARGER_CONNECTED": ("충전 시작", "charger connected"),
    "CHARGER_REMOVED": ("충전 끝", "charger removed"),
    "BATTERY_RECOVERED": ("배터리 회복", "battery recovered"),
    "SHUTDOWN": ("전원 끔", "switched off"),
    "STARTED": ("전원 켬", "switched on"),
    "OUT_OF_COVERAGE": ("통신권 이탈", "out of coverage"),
    "BACK_IN_COVERAGE": ("통신권 복귀", "back in coverage"),
    "DEVICE_REFUSED": ("단말 거부", "device refused"),
    "DEVICE_ACCEPTED": ("단말 수령", "device accepted"),
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
        return word if phase is AlertPhase.BEGUN else f"{word}: {self(f'phase_{phase.value}')}"

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
