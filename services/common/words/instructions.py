"""What a protected person is told to do, and how she answers: the same in a message, in her app and on the page of a link.

Each sentence is one thing to do, fits a text message, and reveals nothing to another reader of her phone. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from services.common.words import Word

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
