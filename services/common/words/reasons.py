"""The practice's word for each reason: why an assignment was closed, why an offer went on, and why a report raised no alert. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from services.common.words import Word

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
