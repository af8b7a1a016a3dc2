"""Texts about phones in Korean and English: codes, links, and the state of a protected person's phone. No I/O, no clock."""

from __future__ import annotations

PHONE_TEXTS: dict[str, tuple[str, str]] = {
    "phone_code": ("피해자 휴대전화 등록 번호", "Code for a protected person's phone"),
    "phone_code_make": ("등록 번호 발급", "Issue a code"),
    "phone_code_hint": (
        "피해자에게만 직접 알려 주십시오. 한 번만 쓸 수 있고 이 화면에만 나옵니다. 먼저 발급한 번호는 쓸 수 없습니다.",
        "Give it to the protected person alone. It works once and is shown only here. Earlier codes of the device have ended.",
    ),
    "phone_device": ("보호 단말 번호", "Protective device's id"),
    "phone_address": ("앱 주소", "Address of the app"),
    "phone_until": ("사용 기한", "Valid until"),
    "unit_link": ("출동팀 링크", "Link for a unit's page"),
    "unit_link_make": ("링크 발급", "Issue a link"),
    "unit_link_hint": (
        "해당 팀의 휴대전화로만 보내십시오. 한 번만 쓸 수 있고 이 화면에만 나옵니다. 먼저 발급한 링크는 쓸 수 없습니다.",
        "Send it to the unit's own phone. It works once and is shown only here. Earlier links of the unit have ended.",
    ),
    "unit_link_no_address": (
        "출동 페이지 주소가 설정되지 않았습니다. 운영자에게 주소를 요청하십시오.",
        "The address of the units' page isn't set (TANDEM_FIELD_URL). Write /unit/# and this code after it.",
    ),
    "unit_distress": ("긴급 지원 요청 중", "Officer needs help"),
    "flag_distress": ("출동 직원 긴급 지원 요청", "Officer needs help"),
    "flag_reminded": ("출동팀 기한 지남, 독촉함", "Unit is late and was reminded"),
    "answer_CANT_ASSURE": (
        "출동 중이거나 현장에 있을 때만 계속 진행을 알릴 수 있습니다.",
        "Only a unit on its way or on the scene can say that it goes on.",
    ),
    "answer_NO_UNIT": ("이 팀이 맡은 출동이 아닙니다.", "This isn't the unit's assignment."),
    "unit_distress_end": ("지원 요청 종료", "End the call for help"),
    "input_device_id": ("보호 단말 번호", "Protective device's id"),
    "phones_refused": ("발급되지 않음", "Not issued"),
    "phones_wrong_device_id": ("보호 단말 번호를 쓰십시오", "write the id of a protective device"),
    "phones_wrong_unit_id": ("출동팀 번호를 쓰십시오", "write the id of a unit"),
    "phones_DEVICE_ENDED": (
        "이 단말은 이용이 끝났습니다. 기록을 확인하십시오.",
        "This device is out of service. See its record.",
    ),
    "phones_SHIFT_OVER": (
        "이 팀의 근무가 끝났습니다. 다음 근무 시간을 먼저 입력하십시오.",
        "The shift of this unit is over. Enter its next shift first.",
    ),
    "phones_UNIT_REMOVED": ("명부에서 빠진 팀입니다.", "This unit isn't on the roster any more."),
    "phones_403": (
        "피해자의 보호 단말이 아닙니다. 등록 번호는 보호 단말에만 발급합니다.",
        "This is no protective device of the police. Only such a device gets a code.",
    ),
    "phones_404": ("그런 단말이나 팀이 없습니다.", "There is no such device or unit."),
    "watched_away_phones": (
        "경찰 대응 서버가 응답하지 않습니다. 피해자 휴대전화의 상태가 없습니다.",
        "The police leg doesn't answer: the states of protected persons' phones are missing here.",
    ),
    "handover_away_phones": (
        "경찰 대응 서버가 응답하지 않습니다. 피해자 휴대전화의 상태가 빠져 있을 수 있습니다.",
        "The police leg doesn't answer: phones without location may be missing here.",
    ),
    "phone_since": ("{}부터", "since {}"),
    "phone_location": ("앱의 위치 사용", "Location in her app"),
    "phone_location_UNSPECIFIED": ("아직 모름", "not known yet"),
    "phone_location_GOOD": ("정상", "as it should be"),
    "phone_location_VAGUE": ("부정확한 위치만 허용됨", "imprecise only"),
    "phone_location_DENIED": ("위치 사용 꺼짐", "Location off"),
    "phone_location_UNAVAILABLE": ("위치를 찾지 못함", "no position found"),
    "phone_screen": ("앱 화면", "Her app"),
    "phone_open": ("열려 있음", "on the screen"),
    "phone_hidden": ("화면 잠김 또는 다른 앱 사용", "Screen locked or another app"),
    "phone_hidden_why": (
        "앱은 화면에 열려 있을 때만 위치를 보냅니다. 위반이나 고장이 아닙니다.",
        "The app reports only while it is on the screen. This is no breach and no fault.",
    ),
    "phone_location_why": (
        "접근 경보가 아닙니다. 피해자에게 전화하여 휴대전화 설정에서 앱의 정확한 위치를 허용하도록 안내하십시오.",
        "This is no approach. Telephone the protected person: the app needs precise location in the phone's settings.",
    ),
}
