"""Texts of the pages of a shift: the handover and the devices of the own side, in Korean and English."""

from __future__ import annotations

DUTY_TEXTS: dict[str, tuple[str, str]] = {
    "handover": ("교대 인계", "Handover"),
    "handover_refused": ("저장되지 않음", "Not stored"),
    "handover_waiting": ("인수 확인을 기다리는 인계", "Handovers that wait for the next shift"),
    "handover_none_waiting": ("확인을 기다리는 인계가 없습니다.", "No handover waits."),
    "handover_own": (
        "본인이 작성한 인계입니다. 다음 근무자가 확인합니다.",
        "You wrote it. A person of the next shift acknowledges it.",
    ),
    "handover_remark": ("확인 의견 (선택)", "Remark (optional)"),
    "handover_acknowledge": ("인수 확인", "Acknowledge"),
    "handover_now": ("현재 진행 중", "Open now"),
    "handover_then": ("작성 당시", "When it was written"),
    "handover_devices": ("확인이 필요한 단말", "Devices in trouble"),
    "handover_no_incidents": ("진행 중인 사건이 없습니다.", "No incident is open."),
    "handover_no_reviews": ("대기 중인 동일인 검토가 없습니다.", "No match review waits."),
    "handover_no_devices": ("확인이 필요한 단말이 없습니다.", "No device is in trouble."),
    "handover_write": ("인계 작성", "Write the handover"),
    "handover_write_hint": (
        "진행 중인 사건과 위의 목록은 함께 저장됩니다. 저장한 인계는 고치거나 지울 수 없습니다.",
        "Open incidents and the lists above are stored with it. A stored handover can't be changed or deleted.",
    ),
    "handover_submit": ("인계 저장", "Store the handover"),
    "handover_earlier": ("지난 인계", "Earlier handovers"),
    "handover_none_earlier": ("확인된 인계가 아직 없습니다.", "No handover was acknowledged yet."),
    "handover_done_written": (
        "인계를 저장했습니다. 다음 근무자의 확인을 기다립니다.",
        "The handover is stored. It waits for the next shift.",
    ),
    "handover_done_acknowledged": ("인수를 확인했습니다.", "The handover is acknowledged."),
    "handover_handover_own": (
        "본인이 작성한 인계는 본인이 확인할 수 없습니다. 다음 근무자가 확인하십시오.",
        "The person who wrote a handover can't acknowledge it: a person of the next shift does.",
    ),
    "handover_handover_acknowledged": (
        "이미 다른 근무자가 확인했습니다.",
        "Another person has acknowledged it already.",
    ),
    "handover_wrong_notes": (
        "1자 이상 4,000자 이하로 쓰십시오 (예: 특이사항 없음)",
        "write 1 to 4,000 characters (example: nothing special)",
    ),
    "handover_wrong_remark": ("500자 이하로 쓰십시오", "write at most 500 characters"),
    "handover_404": ("그런 인계가 없습니다.", "There is no such handover."),
    "handover_409": (
        "같은 양식이 다른 내용으로 이미 저장되었습니다. 아래 인계를 확인하십시오.",
        "This form is stored with other content already. See the handovers below.",
    ),
    "handover_away_dispatch": (
        "대응 서버가 응답하지 않습니다. 사건과 인계가 보이지 않을 수 있습니다.",
        "The leg doesn't answer: incidents and handovers may be missing here.",
    ),
    "handover_away_registry": (
        "등록 서버가 응답하지 않습니다. 동일인 검토 목록이 없습니다.",
        "The registry doesn't answer: match reviews are missing here.",
    ),
    "handover_away_ingest": (
        "수신 서버가 응답하지 않습니다. 배터리 잔량을 모릅니다.",
        "ingest doesn't answer: charges are missing here.",
    ),
    "handover_away_geofence": (
        "판단 서버가 응답하지 않습니다. 무보고·이상 단말이 빠져 있을 수 있습니다.",
        "The evaluator doesn't answer: silent and disturbed devices are missing here.",
    ),
    "input_notes": ("인계 사항", "Notes"),
    "input_remark": ("확인 의견", "Remark"),
    "for_example": ("예:", "example:"),
    "refused_400": ("내용이 올바르지 않습니다", "A value is wrong"),
    "refused_403": ("이 소속은 할 수 없습니다", "This role may not do that"),
    "refused_404": ("찾을 수 없습니다", "Not found"),
    "refused_409": ("현재 상태에서는 할 수 없습니다", "It can't be done in the current state"),
    "refused_502": ("알 수 없는 오류입니다", "Unknown error"),
    "refused_503": (
        "서버가 응답하지 않습니다. 저장 여부를 알 수 없으니 잠시 뒤 같은 양식을 다시 보내십시오.",
        "The service doesn't answer, and nobody knows whether it was stored: send the same form again in a moment.",
    ),
    "watched_devices": ("단말 점검", "Device checks"),
    "watched_title": ("확인이 필요한 단말", "Devices that need somebody"),
    "watched_why": (
        "배터리가 먼저 꺼질 단말이 맨 위에 있습니다. 꺼지기 전에 연락하여 충전하게 하십시오.",
        "The device that dies first is at the top. Call before it does, and have it charged.",
    ),
    "watched_none": ("모든 단말이 정상입니다.", "All devices are well."),
    "watched_away_ingest": (
        "수신 서버가 응답하지 않습니다. 배터리 잔량과 요청 이력이 없습니다.",
        "ingest doesn't answer: charges and commands are missing here.",
    ),
    "watched_away_geofence": (
        "판단 서버가 응답하지 않습니다. 무보고·이상 단말과 오차가 없습니다.",
        "The evaluator doesn't answer: silent and disturbed devices, and accuracies, are missing here.",
    ),
    "battery": ("배터리 잔량", "Battery"),
    "battery_left": ("약 {}시간 남음", "about {} h left"),
    "last_heard": ("최근 보고 시각", "Last report"),
    "subject": ("착용·소지자", "Who has it"),
    "kept_hidden": (
        "알 수 없음 (자동 판단의 요청 중에는 표시하지 않음)",
        "unknown (not shown while the decision asks)",
    ),
    "device_silent": ("무보고", "Silent"),
    "device_no_case": (
        "이 단말이 속한 공동 대응 사건이 없어 판단 서버가 보고 상태를 알지 못합니다.",
        "The device is in no joint case, so the evaluator knows nothing of its reports.",
    ),
    "device_not_shown": ("이 단말은 볼 수 없습니다", "This device isn't shown"),
    "device_400": ("단말 번호가 올바르지 않습니다.", "This is no id of a device."),
    "device_403": (
        "다른 기관의 단말입니다. 그 기관의 관제 요원에게 물어보십시오.",
        "The device belongs to the other agency. Ask that agency's desk.",
    ),
    "device_404": ("등록된 단말이 아닙니다.", "No such device is registered."),
    "device_502": ("알 수 없는 오류입니다.", "Unknown error."),
    "device_503": (
        "서버가 응답하지 않습니다. 잠시 뒤 다시 여십시오.",
        "The service doesn't answer. Open the page again.",
    ),
    "event_of_STRAP_OPEN": ("스트랩 열림", "Strap open"),
    "event_of_CASE_OPEN": ("본체 열림", "Case open"),
    "event_of_PANIC_BUTTON": ("긴급 호출", "Panic button"),
    "event_of_JAMMING_SUSPECTED": ("전파 방해 의심", "Jamming suspected"),
    "event_of_SHUTDOWN": ("전원 꺼짐", "Switched off"),
    "event_of_DEVICE_REFUSED": ("단말 수령 거부", "Device refused"),
    "event_of_CHARGER_CONNECTED": ("충전 중", "Charging"),
    "event_of_OUT_OF_COVERAGE": ("통신 불가 지역", "Out of coverage"),
}
