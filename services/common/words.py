"""The words of the practice: one table in Korean and English, by the names of the protos' enums and by the codes of the articles.

The console, her app, a unit's page, the documents for a court, the commands and the messages have them from here, so that a thing is
called the same wherever a person meets it. Texts that only one page has stay with that page. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

Word = tuple[str, str]
"""A word or short phrase in Korean and in English."""


def keyed(prefix: str, words: Mapping[str, Word]) -> dict[str, Word]:
    """The words by a prefix and their name, as a table of texts has them that holds words of several kinds."""
    return {f"{prefix}{name}": word for name, word in words.items()}


def within_a_line(words: Mapping[str, Word]) -> dict[str, Word]:
    """The words as they stand within a line: English begins with a small letter."""
    return {name: (korean, english[0].lower() + english[1:]) for name, (korean, english) in words.items()}


def in_small_letters(words: Mapping[str, Word]) -> dict[str, Word]:
    """The words by their name in small letters, as pages and services name a leg or a state among each other."""
    return {name.lower(): word for name, word in words.items()}


# ── alerts and what they demand ───────────────────────────────────────────────────────────────────────────────────────
# The words don't decide what happened: a suspicion is called one, and an entry of a ring isn't called a breach.

ALERT_WORDS: Mapping[str, Word] = {
    "RING_ENTERED": ("접근", "Ring entered"),
    "RING_CLEARED": ("이탈", "Ring cleared"),
    "TAMPERED": ("전자장치 훼손 의심", "Tag tampering suspected"),
    "PANIC": ("피해자 긴급 신고", "Panic call"),
    "LOW_BATTERY": ("배터리 부족", "Low battery"),
    "JAMMED": ("전파 방해 의심", "Jamming suspected"),
    "DEVICE_OFF": ("단말 전원 꺼짐", "Device switched off"),
    "PROTECTED_DEVICE_LOST": ("피해자 단말 두절", "Protective device lost"),
    "SILENT": ("전자장치 무보고", "Tag silent"),
    "HEARD_AGAIN": ("전자장치 보고 재개", "Tag reports again"),
    "UNKNOWN_NEAR": ("위치 불명, 접근 우려", "Position unknown, may be near"),
    "CONTACT_PREDICTED": ("접촉 예측", "Contact predicted"),
    "IMPLAUSIBLE": ("위치 신뢰 불가", "Implausible position"),
    "DISTANCE_CHANGED": ("거리 변화", "Distance changed"),
    "OUTAGE": ("통신 장애", "Outage"),
    "ACCOUNT_AMENDED": ("접근 기록 정정", "Account amended"),
    "SPOOFING_SUSPECTED": ("위치 조작 의심", "Spoofing suspected"),
    "LATE_EVIDENCE": ("지연 보고로 과거 접근 확인", "Past presence, reported late"),
    "NOTICE_ENDED": ("법무부 통지 종료", "Notice of the Ministry ended"),
    "NOT_FITTED": ("지정 일시까지 전자장치 미부착", "No tag fitted by the court's time"),
    "TAG_LAPSED": ("기록상 부착 장치 없음", "Tag ended in the records"),
    "TAG_REMOVAL": ("전자장치 일시 분리 시작", "Authorised removal of the tag begins"),
    "TAG_REMOVED": ("전자장치 일시 분리됨", "Tag removed with permission"),
    "TAG_REFITTED": ("전자장치 재부착됨", "Tag refitted"),
}
"""Word in Korean and English by the name of tandem.common.v1.AlertKind."""

ALERT_PHASE_WORDS: Mapping[str, Word] = {
    "OVER": ("종료", "over"),
    "UNCONFIRMED": ("확인 없이 종료", "ended, not confirmed by any report"),
    "CHANGED": ("변동 기록", "a change, for the record"),
}
"""Word in Korean and English by the value of AlertPhase, after the kind's word. What has begun needs none."""

DEMAND_WORDS: Mapping[str, Word] = {
    "RECORD": ("기록", "Record"),
    "WARN": ("피해자 알림", "Warn"),
    "NOTIFY": ("통지", "Notify"),
    "RESPOND": ("출동", "Respond"),
}
"""Word in Korean and English by the name of tandem.common.v1.Demand: how much an alert asks for, or a ring of an order."""

TASK_WORDS: Mapping[str, Word] = {
    "CHECK": ("통지에 따른 확인", "Check after a notice"),
    "CONTACT": ("피부착자 첫 연락", "First contact with the wearer"),
}
"""Word in Korean and English by the name of tandem.common.v1.Task: what a leg does where nobody has to go at once."""

SPOOFING_WARNING: Word = (
    "위치 조작 의심: 이탈로 보지 마십시오",
    "Spoofing suspected: don't assume that the wearer has left",
)
"""What a desk and a unit read while positions of the wearer are withheld from an all-clear."""

EQUIPMENT_WORDS: Mapping[str, Word] = {
    "STRAP_OPEN": ("스트랩 열림 또는 절단", "Strap opened or cut"),
    "STRAP_CLOSED": ("스트랩 닫힘", "Strap closed"),
    "CASE_OPEN": ("본체 열림", "Case opened"),
    "CASE_CLOSED": ("본체 닫힘", "Case closed"),
    "BATTERY_LOW": ("배터리 부족", "Battery low"),
    "PANIC_BUTTON": ("긴급 신고 누름", "Panic button pressed"),
    "PANIC_CANCELLED": ("긴급 신고 취소", "Panic call cancelled"),
    "JAMMING_SUSPECTED": ("전파 방해 의심", "Jamming suspected"),
    "JAMMING_OVER": ("전파 방해 해소", "Jamming over"),
    "CHARGER_CONNECTED": ("충전기 연결", "Charger connected"),
    "CHARGER_REMOVED": ("충전기 분리", "Charger removed"),
    "BATTERY_RECOVERED": ("배터리 회복", "Battery recovered"),
    "SHUTDOWN": ("전원 꺼짐", "Switched off"),
    "STARTED": ("전원 켜짐", "Switched on"),
    "OUT_OF_COVERAGE": ("통신권 이탈", "Out of coverage"),
    "BACK_IN_COVERAGE": ("통신권 복귀", "Back in coverage"),
    "DEVICE_REFUSED": ("단말 수령 거부", "Device refused"),
    "DEVICE_ACCEPTED": ("단말 수령", "Device accepted"),
}
"""Word in Korean and English by the name of tandem.common.v1.EquipmentKind. It says what the device reported, and never that somebody
did it: a battery may be left empty, and a strap may break."""


# ── states of an assignment ───────────────────────────────────────────────────────────────────────────────────────────
# An order to go (출동 지령) is given by a desk to a unit: only DISPATCHED is called so. The mesh asks a desk or a unit by an offer.

STATE_WORDS: Mapping[str, Word] = {
    "NOTIFIED": ("통지됨", "Notified"),
    "OFFERED": ("접수 대기", "Offered"),
    "ESCALATED": ("다음 순번 요청", "Escalated"),
    "ACKNOWLEDGED": ("접수 완료", "Accepted"),
    "STOOD_DOWN": ("상황 해제", "Stood down"),
    "DISPATCHED": ("출동 지령", "Dispatched"),
    "EN_ROUTE": ("출동 중", "En route"),
    "ON_SCENE": ("현장 도착", "On scene"),
    "APPREHENDED": ("신병 확보", "Apprehended"),
    "CLOSED": ("종결 완료", "Closed"),
    "NOBODY_AVAILABLE": ("출동 가능 인원 없음", "Nobody available"),
    "REJECTED": ("거절됨", "Refused"),
}
"""Word in Korean and English by the name of tandem.dispatch.v1.AssignmentState."""

UNIT_STATE_WORDS: Mapping[str, Word] = {
    "UNIT_ASKED": ("응답 대기", "Asked"),
    "UNIT_ACCEPTED": ("수락됨", "Unit accepted"),
    "UNIT_REFUSED": ("거절됨", "Refused"),
    "UNIT_MISSED": ("응답 없음", "No answer"),
    "UNIT_NOT_NEEDED": ("요청 해제", "Not needed"),
    "UNIT_OFF_DUTY": ("근무 아님", "Off duty"),
    "UNIT_REPLACED": ("교체됨", "Replaced"),
}
"""Word in Korean and English by the name of tandem.dispatch.v1.UnitOfferState: what became of an offer to a unit.

A unit's acceptance has another word than a desk's, which sends nobody."""

LEG_WORDS: Mapping[str, Word] = {
    "PROBATION": ("보호관찰", "Probation"),
    "POLICE": ("경찰", "Police"),
    "WARNING": ("피해자 알림", "Warning"),
}
"""Word in Korean and English by the name of tandem.common.v1.Leg: who has the assignment."""


# ── what is known of a person, and notes of calls ─────────────────────────────────────────────────────────────────────

WARNING_FLAG_WORDS: Mapping[str, Word] = {
    "NO_RECEIPT": ("피해자 알림 수신 미확인", "The protected person hasn't confirmed the warning"),
    "NO_CONTACT": ("피해자 연락 수단 없음", "No way to reach the protected person"),
    "DURESS": ("피해자 협박 의심 신호", "The protected person may be under duress"),
    "REACHED": ("피해자 연락됨", "Protected person reached"),
}
"""Word in Korean and English by the name of tandem.dispatch.v1.WarningFlag."""

CONTACT_STATE_WORDS: Mapping[str, Word] = {
    "CONTACT_SENT": ("피부착자에게 안내 전송", "The tag tells the wearer to turn round"),
    "CONTACT_CALL_DUE": ("피부착자에게 전화 필요", "Call to the wearer due"),
    "CONTACTED": ("피부착자 연락됨", "Wearer contacted"),
    "CONTACT_TURNED_BACK": ("피부착자 되돌아감", "Wearer turned back"),
    "CONTACT_NO_ANSWER": ("피부착자 응답 없음", "Wearer doesn't answer"),
    "CONTACT_OUT_OF_BUDGET": ("피부착자 안내 횟수 초과", "Wearer's contacts used up"),
}
"""Word in Korean and English by the name of tandem.dispatch.v1.ContactState: how far the first contact with a wearer is."""

NOTE_KIND_WORDS: Mapping[str, Word] = {
    "NOTE": ("메모", "Note"),
    "CALLED_WEARER": ("피부착자 통화", "Call to the wearer"),
    "CALLED_PROTECTED_PERSON": ("피해자 통화", "Call to the protected person"),
    "CALLED_OTHER_DESK": ("상대 기관 통화", "Call to the other desk"),
    "CALLED_UNIT": ("대원 통화", "Call to a unit"),
    "CALLED_OTHER": ("그 밖의 통화", "Another call"),
}
"""Word in Korean and English by the name of tandem.dispatch.v1.NoteKind."""

NOTED_RESULT_WORDS: Mapping[str, Word] = {
    "NOTED_SPOKEN": ("통화함", "Spoke"),
    "NOTED_NO_ANSWER": ("받지 않음", "No answer"),
}
"""Word in Korean and English by the name of tandem.dispatch.v1.NotedResult: what came of a call."""

OFFICER_NEEDS_HELP: Word = ("출동 직원 긴급 지원 요청", "Officer needs help")
"""An officer of a unit called for help, and nobody has ended that call."""


# ── reasons ───────────────────────────────────────────────────────────────────────────────────────────────────────────

CLOSE_CAUSE_WORDS: Mapping[str, Word] = {
    "BREACH_CONFIRMED": ("위반 확인", "Breach confirmed"),
    "FALSE_POSITION": ("위치 오류", "False position"),
    "EQUIPMENT": ("장비 문제", "Equipment"),
    "AUTHORISED": ("허가된 대면", "Authorised encounter"),
    "EXERCISE": ("훈련", "Exercise"),
    "OTHER": ("기타", "Other"),
    "NOBODY_FOUND": ("현장에 아무도 없음", "Nobody found"),
}
"""Word in Korean and English by the name of tandem.dispatch.v1.CloseCause."""

ESCALATION_REASON_WORDS: Mapping[str, Word] = {
    "NOT_RECEIVED": ("단말 미수신", "Not received by the machine"),
    "NOT_ACKNOWLEDGED": ("기한 내 미접수", "Not answered in time"),
    "NOT_DISPATCHED": ("기한 내 출동 지령 없음", "No unit dispatched in time"),
    "REFUSED": ("거절", "Refused"),
    "NOBODY": ("출동 가능 인원 없음", "Nobody available"),
    "UNIT_GONE": ("대원 근무 종료", "Unit off duty"),
    "TARGET_MOVED": ("대상 이동", "Target moved"),
    "RACE_LOST": ("피부착자가 먼저 도착할 수 있음", "The wearer may arrive first"),
    "NOT_DEPARTED": ("기한 내 미출발", "Not on its way in time"),
    "NOT_ARRIVED": ("예상 시간 내 미도착", "Not there in its travel time"),
    "NO_WORD": ("현장 무응답", "No word from the scene"),
}
"""Word in Korean and English by the name of tandem.dispatch.v1.EscalationReason. A race that is being lost has its reason's word."""

HELD_BACK_WORDS: Mapping[str, Word] = {
    "NOT_IN_FORCE": ("명령이 아직 유효하지 않음", "The order wasn't in force"),
    "NO_POSITION": ("한쪽의 위치가 없음", "One side had no position"),
    "FAR": ("안에 있을 확률이 1 % 미만", "The probability of being inside was below 1 %"),
    "UNLIKELY": (
        "안에 있을 확률이 출동 기준보다 낮음",
        "The probability of being inside was too low to send somebody",
    ),
    "UNCONFIRMED": (
        "위치가 갑자기 바뀌었고 이를 확인하는 둘째 위치가 아직 없음",
        "A position jump that no second position had confirmed",
    ),
    "LATE": (
        "늦게 도착한 보고이며, 이 보고만으로는 새로 드러난 접근이 없음",
        "It came late, and by itself proved no presence that was unknown",
    ),
    "VAGUE": (
        "정확도가 나빠 안에 있는지 알 수 없음",
        "The accuracy was too poor to tell whether the wearer was inside",
    ),
    "ENCOUNTER": ("허가된 대면 중", "An authorised encounter was active"),
    "ENTERED": ("이미 진입으로 판단됨", "Entered already"),
}
"""Word in Korean and English by the rule that held the entry of a ring back at a report, and ENTERED where none did."""


# ── articles of law and purposes ──────────────────────────────────────────────────────────────────────────────────────
# The law is cited as the statute numbers it, with its own words for what it allows, so that an officer and a judge find the same
# passage.

ARTICLE_WORDS: Mapping[str, Word] = {
    "STALKING_9_1_2": (
        "스토킹처벌법 제9조제1항제2호 (100미터 이내 접근금지)",
        "Stalking Punishment Act 9(1) item 2: no approach within 100 m",
    ),
    "STALKING_9_1_3": (
        "스토킹처벌법 제9조제1항제3호 (전기통신 이용 접근금지)",
        "Stalking Punishment Act 9(1) item 3: no contact by telecommunication",
    ),
    "STALKING_9_1_3_2": (
        "스토킹처벌법 제9조제1항제3호의2 (위치추적 전자장치 부착)",
        "Stalking Punishment Act 9(1) item 3-2: electronic tag",
    ),
    "STALKING_4": (
        "스토킹처벌법 제4조 (긴급응급조치)",
        "Stalking Punishment Act 4: police emergency measure",
    ),
    "STALKING_17_6": (
        "스토킹처벌법 제17조의6 (피해자보호명령)",
        "Stalking Punishment Act 17-6: victim protection order",
    ),
    "STALKING_17_7": (
        "스토킹처벌법 제17조의7 (임시보호명령)",
        "Stalking Punishment Act 17-7: interim protection order",
    ),
    "DV_29_1": (
        "가정폭력처벌법 제29조제1항 (임시조치)",
        "Domestic Violence Act 29 items 1 to 3: temporary measure",
    ),
    "DV_PROTECTION": ("가정폭력처벌법 (피해자보호명령)", "Domestic Violence Act: victim protection order"),
    "TAG_9_2_1_3": (
        "전자장치부착법 제9조의2제1항제3호 (특정인 접근금지)",
        "Tag Act 9-2(1)3: no approach to a named person",
    ),
    "TAG_16_2": (
        "전자장치부착법 제16조제2항 (수신자료의 이용)",
        "Tag Act 16(2): closed list of uses of a wearer's data",
    ),
    "TAG_16_3_2": (
        "전자장치부착법 제16조의3제2항 (영상정보 열람 요청)",
        "Tag Act 16-3(2): request to a local government for CCTV",
    ),
    "TAG_31_8_2": (
        "전자장치부착법 제31조의8제2항 (수신자료의 이용)",
        "Tag Act 31-8(2): use of the data of a wearer under item 3-2",
    ),
    "TAG_DECREE_23_10": (
        "전자장치부착법 시행령 제23조의10부터 제23조의19까지 (경찰 통보)",
        "Tag Act Decree 23-10 to 23-19: police told of a breach or its risk",
    ),
    "TAG_15_2": (
        "전자장치부착법 제15조의2 (피해자 통지)",
        "Tag Act 15-2: notice to the person whom a condition 9-2(1)3 names",
    ),
    "TAG_16_2_5": (
        "전자장치부착법 제16조제2항제5호 (통지 시 위치 제공)",
        "Tag Act 16(2) item 5: location together with a notice under 15-2",
    ),
    "TAG_DECREE_13_3": (
        "전자장치부착법 시행령 제13조의3",
        "Tag Act Decree 13-3: how a location is given together with a notice under 15-2",
    ),
    "TAG_31_6_4": (
        "전자장치부착법 제31조의6제4항 단서 (피해자 통지)",
        "Tag Act 31-6(4), proviso: notice to the persons whom a no-approach order protects",
    ),
    "TAG_31_8_2_5": (
        "전자장치부착법 제31조의8제2항제5호 (통지 시 위치 제공)",
        "Tag Act 31-8(2) item 5: location together with a notice under 31-6(4)",
    ),
    "TAG_DECREE_23_17": (
        "전자장치부착법 시행령 제23조의17제1항",
        "Tag Act Decree 23-17(1): how a location is given together with a notice under 31-6(4)",
    ),
}
"""Name in Korean and English by the article's code in the list of legal bases."""

PURPOSE_WORDS: Mapping[str, Word] = {
    "ENFORCEMENT": ("집행", "Enforcement"),
    "MATCH_REVIEW": ("동일인 검토", "Match review"),
    "VICTIM_CONTACT": ("피해자 연락", "Contact with the protected person"),
    "COURT": ("법원", "Court"),
    "AUDIT": ("점검", "Audit"),
    "SUBJECT_REQUEST": ("정보주체의 열람 요구", "Request of the person concerned"),
    "RETENTION": ("보존기간 경과", "Retention period over"),
}
"""Word in Korean and English by the purpose of a disclosure."""


# ── what a protected person is told to do, and how she answers ────────────────────────────────────────────────────────
# Each sentence is one thing to do, fits a text message, and reveals nothing to another reader of her phone.

INSTRUCTED_ACT_WORDS: Mapping[str, Word] = {
    "LOCK_IN": (
        "문을 잠그고 안에 계십시오. 밖이라면 사람이 있는 건물로 들어가십시오.",
        "Stay behind a locked door. If outside, go into a building with people.",
    ),
    "STAY_INSIDE": (
        "밖으로 나가지 마십시오. 문과 창을 잠그고 창에서 떨어지십시오.",
        "Stay inside. Lock doors and windows and keep away from them.",
    ),
    "LEAVE": (
        "지금 그곳을 떠나 사람이 있는 곳으로 가십시오. 평소와 다른 길로 가십시오.",
        "Leave now and go where there are people, by another way than usual.",
    ),
    "KEEP_AWAY": (
        "그곳에 가지 마십시오. 그 안에 있다면 문을 잠그고 계십시오.",
        "Don't go there. If you are inside, lock the door and stay.",
    ),
    "GO_INDOORS": ("문을 잠글 수 있는 실내에 계십시오.", "Be indoors, where you can lock the door."),
    "KEEP_PHONE": ("휴대전화를 곁에 두십시오.", "Keep your phone with you."),
}
"""Sentence in Korean and English by the act of an instruction."""

ANSWER_WORDS: Mapping[str, Word] = {
    "1": ("확인", "OK"),
    "2": ("알겠음", "Got it"),
    "3": ("닫기", "Close"),
}
"""Word in Korean and English by the number of an answer. Each person agrees with the police which answer, if any, means duress."""

ANSWERED: Word = ("확인되었습니다.", "Noted.")
"""Text that is shown after every answer, the first and any further one."""
