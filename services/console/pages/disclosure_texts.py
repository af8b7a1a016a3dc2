"""Texts of the ledger of disclosures, of the trace, of refused reports, and of pages that aren't shown, in Korean and English."""

from __future__ import annotations

DISCLOSURE_TEXTS: dict[str, tuple[str, str]] = {
    # Kinds of rows of the ledger.
    "deed_READ": ("열람", "Read"),
    "deed_SHARED": ("위치 공유 시작", "Share of locations began"),
    "deed_SHARE_ENDED": ("위치 공유 종료", "Share of locations ended"),
    "deed_DESTROYED": ("파기", "Destroyed"),
    "deed_NOTIFIED": ("피해자에게 통지", "Protected person notified"),
    "kind_WEARER": ("피부착자 기록", "Wearer's record"),
    "kind_PROTECTED_PERSON": ("피해자 기록", "Protected person's record"),
    "kind_ORDER": ("명령 기록", "Order"),
    "kind_PRESENCE_UNIT": ("재택 감독장치·비콘 기록", "Record of a home unit or beacon"),
    "purpose_MATCH_REVIEW": ("동일인 검토", "Match review"),
    "purpose_VICTIM_CONTACT": ("피해자 연락", "Contact with the protected person"),
    "purpose_SUBJECT_REQUEST": ("정보주체의 열람 요구", "Request of the person concerned"),
    "purpose_RETENTION": ("보존기간 경과", "Retention period over"),
    "basis_TAG_16_2": ("전자장치부착법 제16조제2항", "Tag Act 16(2): closed list of uses of a wearer's data"),
    "basis_TAG_16_3_2": (
        "전자장치부착법 제16조의3제2항 (영상정보 열람 요청)",
        "Tag Act 16-3(2): request to a local government for CCTV",
    ),
    "basis_TAG_31_8_2": (
        "전자장치부착법 제31조의8제2항 (잠정조치 수신자료)",
        "Tag Act 31-8(2): use of the data of a wearer under item 3-2",
    ),
    "basis_TAG_15_2": (
        "전자장치부착법 제15조의2 (피해자 통지)",
        "Tag Act 15-2: notice to the person whom a condition names",
    ),
    "basis_TAG_16_2_5": (
        "전자장치부착법 제16조제2항제5호 (통지 시 위치 제공)",
        "Tag Act 16(2) item 5: location together with a notice under 15-2",
    ),
    "basis_TAG_DECREE_13_3": (
        "전자장치부착법 시행령 제13조의3",
        "Tag Act Decree 13-3: how a location is given with a notice under 15-2",
    ),
    "basis_TAG_31_6_4": (
        "전자장치부착법 제31조의6제4항 단서 (피해자 통지)",
        "Tag Act 31-6(4), proviso: notice to the persons whom a no-approach order protects",
    ),
    "basis_TAG_31_8_2_5": (
        "전자장치부착법 제31조의8제2항제5호 (통지 시 위치 제공)",
        "Tag Act 31-8(2) item 5: location together with a notice under 31-6(4)",
    ),
    "basis_TAG_DECREE_23_17": (
        "전자장치부착법 시행령 제23조의17제1항",
        "Tag Act Decree 23-17(1): how a location is given with a notice under 31-6(4)",
    ),
    # Names of the trace, which the registry writes in English.
    "incident opened": ("사건 발생", "incident opened"),
    "report received": ("보고 수신", "report received"),
    "evaluated": ("위치 판단", "evaluated"),
    "alert": ("경보 발령", "alert"),
    "order in force": ("명령 효력 발생", "order in force"),
    "misses probation": ("보호관찰 무응답", "misses probation"),
    "misses police": ("경찰 무응답", "misses police"),
    "misses warning": ("피해자 알림 무응답", "misses warning"),
    "sees probation again": ("보호관찰 응답 재개", "sees probation again"),
    "sees police again": ("경찰 응답 재개", "sees police again"),
    "sees warning again": ("피해자 알림 응답 재개", "sees warning again"),
    "first contact: sent": ("피부착자에게 안내 전송", "first contact: sent"),
    "first contact: call due": ("피부착자에게 전화 필요", "first contact: call due"),
    "first contact: contacted": ("피부착자 연락됨", "first contact: contacted"),
    "first contact: turned back": ("피부착자 되돌아감", "first contact: turned back"),
    "first contact: no answer": ("피부착자 응답 없음", "first contact: no answer"),
    "first contact: out of budget": ("피부착자 안내 횟수 초과", "first contact: out of budget"),
    "no receipt": ("피해자 알림 수신 미확인", "no receipt"),
    "no contact": ("피해자 연락 수단 없음", "no contact"),
    "reached": ("피해자 연락됨", "reached"),
    "duress": ("피해자 협박 의심 신호", "duress"),
    "service_ingest": ("보고 수신", "ingest"),
    "service_geofence": ("위치 판단", "geofence"),
    "service_registry": ("기록 관리", "registry"),
    "service_dispatch-probation": ("보호관찰 지령", "dispatch-probation"),
    "service_dispatch-police": ("경찰 지령", "dispatch-police"),
    "service_dispatch-warning": ("피해자 알림", "dispatch-warning"),
    # Codes of refused reports.
    "refusal_REFUSAL_CODE_INVALID": ("형식 오류", "Invalid report"),
    "refusal_REFUSAL_CODE_CLOCK_AHEAD": ("미래 시각의 보고", "Time in the future"),
    "refusal_REFUSAL_CODE_UNKNOWN_DEVICE": ("등록되지 않은 단말", "Unknown device"),
    "refusal_REFUSAL_CODE_REVOKED": ("등록이 해지된 단말", "Revoked device"),
    "refusal_REFUSAL_CODE_NOT_YOURS": ("다른 곳에 등록된 단말", "Device of another sender"),
    "refusal_REFUSAL_CODE_TOO_OFTEN": ("너무 잦은 보고", "Too often"),
    # Pages that aren't shown.
    "error_title": ("화면을 열 수 없습니다", "This page is not shown"),
    "error_home": ("처음 화면으로", "To the first page"),
    "error_detail": ("서버 원문", "The service's own words"),
    "error_400": ("주소나 입력한 값이 올바르지 않습니다.", "The address or a value in it is wrong."),
    "error_401": ("로그인이 필요합니다.", "Sign in first."),
    "error_403": (
        "이 화면은 소속과 권한이 맞지 않거나, 오래된 화면에서 보낸 요청입니다. 화면을 다시 열어 보십시오.",
        "This page is for other roles, or the request came from an old page: load the page again.",
    ),
    "error_404": ("찾는 화면이나 기록이 없습니다.", "There is no such page or record."),
    "error_405": ("이 주소는 화면으로 열 수 없습니다.", "This address can't be opened as a page."),
    "error_409": (
        "그 사이에 상태가 바뀌었습니다. 다시 열어 보십시오.",
        "Something has changed meanwhile: open it again.",
    ),
    "error_413": ("보낸 내용이 너무 큽니다.", "The request is too large."),
    "error_429": (
        "이 주소에서 요청이 너무 많습니다. 1분 뒤에 다시 하십시오.",
        "Too many requests from this address. Repeat it in a minute.",
    ),
    "error_503": (
        "서버가 응답하지 않거나 바쁩니다. 잠시 뒤에 다시 여십시오. 급하면 전화하십시오.",
        "A service doesn't answer or is busy. Open the page again shortly; telephone if it is urgent.",
    ),
    "error_other": (
        "알 수 없는 오류입니다. 운영자에게 알리십시오.",
        "Unknown error. Tell the operators of the console.",
    ),
}
