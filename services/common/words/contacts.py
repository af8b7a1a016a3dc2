"""The practice's word for what is known of a protected person, a wearer or an officer, and for what a desk noted about a call. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from services.common.words import Word

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
