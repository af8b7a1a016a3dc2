"""The practice's word for each kind of alert and of equipment event, for its parts, and for each demand and task.

The words don't decide what happened: a suspicion is called one, and an entry of a ring isn't called a breach. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from services.common.words import Word

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
