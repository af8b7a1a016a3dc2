"""The practice's word for each leg and each state of an assignment, the same on each page and in a court's document.

An order to go (출동 지령) is given by a desk to a unit: only DISPATCHED is called so. The mesh asks a desk or a unit by an offer. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from services.common.words import Word

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
