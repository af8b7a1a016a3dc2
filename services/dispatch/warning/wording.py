"""Texts of messages to protected persons, in Korean and English. Pure.

An instruction says who it is about, where, and one thing to do. A text works without sound for a person who mustn't speak. It reveals
neither names nor positions to another reader. It never says that all is well, since positions can be wrong and another person may hold
the phone. It doesn't promise that police are coming either: the warning leg works when the police leg doesn't, and somebody else may
hold the phone.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import NamedTuple

from services.common import words
from services.common.times import KOREA
from services.common.words import ANSWER_WORDS, INSTRUCTED_ACT_WORDS, Word
from services.dispatch.warning.domain import InstructedAct, Instruction, MessageKind, ThreatKind

FIGURES_WITHIN_M = 600.0
"""Maximum distance, metres, that a text states. Within it, police practice shows her a map. Farther out a text states only rings,
since from a few distances and her own positions she could infer the wearer's address."""
_STEP_M = 100


class Language(Enum):
    """Languages of the texts, by their BCP 47 tags."""

    KOREAN = "ko"
    ENGLISH = "en"


class DistanceTrend(Enum):
    """Change of a distance since the last message."""

    NEARER = "NEARER"
    FARTHER = "FARTHER"
    UNKNOWN = "UNKNOWN"


class Distance(NamedTuple):
    """A distance to the wearer."""

    distance_m: float | None
    """Metres; None if it is unknown."""
    trend: DistanceTrend
    at_ms: int
    """When it was measured, mesh time."""


class Wording(NamedTuple):
    """A message in words. The parts are empty where the message has none."""

    text: str
    """The whole message."""
    who: str
    where: str
    act: str


_Both = Mapping[Language, str]
_KO, _EN = Language.KOREAN, Language.ENGLISH


def _both(word: Word) -> _Both:
    """A word of the common table by its language."""
    korean, english = word
    return {_KO: korean, _EN: english}


_LEAD: _Both = {_KO: "[알림] ", _EN: "Notice: "}
_DRILL: _Both = {_KO: "[훈련] ", _EN: "[Drill] "}
_END: _Both = {
    _KO: "말하기 어려우면 112에 문자로 알릴 수 있습니다.",
    _EN: "If you can't speak, 112 takes text messages.",
}
_WHO: _Both = {_KO: "접근금지 결정의 상대방", _EN: "the person of your order"}
ACTS: Mapping[InstructedAct, _Both] = {act: _both(INSTRUCTED_ACT_WORDS[act.name]) for act in InstructedAct}
_WHERE: Mapping[ThreatKind, _Both] = {
    ThreatKind.COMING: {_KO: "이쪽으로 오고 있을 수 있음", _EN: "may be coming your way"},
    ThreatKind.UNSEEN: {
        _KO: "위치를 알 수 없고 가까이 있을 수 있음",
        _EN: "position unknown, may be near",
    },
    ThreatKind.TAMPERED: {
        _KO: "장치에 이상이 있어 위치를 믿을 수 없고 가까이 있을 수 있음",
        _EN: "a device reports tampering, position not reliable, may be near",
    },
}
_WHERE_OF_PLACE: Mapping[ThreatKind, _Both] = {
    ThreatKind.COMING: {
        _KO: "귀하의 보호 장소로 오고 있을 수 있음",
        _EN: "may be coming to a protected place of yours",
    },
    ThreatKind.UNSEEN: {
        _KO: "위치를 알 수 없고 귀하의 보호 장소 가까이 있을 수 있음",
        _EN: "position unknown, may be near a protected place of yours",
    },
}
_UNKNOWN_KIND: _Both = {_KO: "확인할 알림이 있습니다.", _EN: "there is a message for you."}
_OVER: Mapping[MessageKind, _Both] = {
    MessageKind.OVER: {_KO: "앞선 알림이 끝났습니다.", _EN: "the earlier notice has ended."},
    MessageKind.MINISTRY_OVER: {
        _KO: "법무부의 앞선 통지가 끝났습니다.",
        _EN: "the earlier notice of the Ministry of Justice has ended.",
    },
    MessageKind.ONE_OVER: {
        _KO: "법무부의 앞선 통지가 끝났지만, 다른 알림은 계속됩니다.",
        _EN: "the earlier notice of the Ministry of Justice has ended, but another notice continues.",
    },
}
_OVER_ACT: Mapping[MessageKind, _Both] = {
    MessageKind.OVER: {
        _KO: "위치는 틀릴 수 있으니 계속 주의하십시오.",
        _EN: "Positions can be wrong: stay attentive.",
    },
    MessageKind.MINISTRY_OVER: {
        _KO: "위치는 틀릴 수 있으니 계속 주의하십시오.",
        _EN: "Positions can be wrong: stay attentive.",
    },
    MessageKind.ONE_OVER: {
        _KO: "그 알림의 안내를 계속 따르십시오.",
        _EN: "Keep doing what it says.",
    },
}
_PHONE_SILENT: _Both = {
    _KO: "휴대전화에서 위치가 오지 않습니다. 전원과 위치, 통신을 확인하십시오. 그동안 알림이 오지 않을 수 있습니다.",
    _EN: "your phone isn't reporting its position. Check that it is on and has location and network. "
    "Until then you may not be warned.",
}
_BREACH: _Both = {
    _KO: "법무부 통지: 접근금지를 어겼거나 어길 우려가 큽니다.",
    _EN: "Ministry of Justice: a breach of the no-approach order, or a marked risk of one.",
}
_CONFIDENTIAL: _Both = {
    _KO: "이 위치 정보를 남에게 알리거나 다른 목적에 쓰면 처벌받을 수 있습니다.",
    _EN: "Passing this on, or using it otherwise, is punishable.",
}
"""Tag Act 36(4)."""
_TREND: Mapping[DistanceTrend, _Both] = {
    DistanceTrend.NEARER: {_KO: "더 가까워짐, ", _EN: "nearer, "},
    DistanceTrend.FARTHER: {_KO: "더 멀어짐, ", _EN: "farther away, "},
    DistanceTrend.UNKNOWN: {_KO: "", _EN: ""},
}
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)

BUTTONS: Mapping[Language, tuple[str, ...]] = {
    _KO: tuple(korean for korean, _ in ANSWER_WORDS.values()),
    _EN: tuple(english for _, english in ANSWER_WORDS.values()),
}
"""The three answers, in the order of their numbers."""
ANSWERED = _both(words.ANSWERED)
ASKED: _Both = {_KO: "알림을 보셨습니까?", _EN: "Have you seen the notice?"}


def instruction(
    present: Instruction, language: Language, *, distance: Distance | None = None, order_from_ms: int | None = None
) -> Wording:
    """The words of an instruction.

    `distance` is the newest distance within the ring, if one was measured since the ring was entered. `order_from_ms` is when the order
    began, mesh time, if she has several orders and has to know which is meant; else None.
    """
    lead, act = _lead(language, drill=present.drill), ACTS[present.act][language]
    shown_act = (_DRILL[language] if present.drill else "") + act  # her app shows it alone
    if present.kind is ThreatKind.OTHER:
        return Wording(lead + " ".join((_UNKNOWN_KIND[language], act, _END[language])), who="", where="", act=shown_act)
    who, where = _who(language, order_from_ms), _where(present, language, distance)
    return Wording(lead + " ".join((f"{who}: {where}.", act, _END[language])), who=who, where=where, act=shown_act)


def over(kind: MessageKind, language: Language, *, drill: bool = False) -> Wording:
    """The words of the message that an instruction or a notice of the Ministry has ended."""
    act = _OVER_ACT[kind][language]
    return Wording(_lead(language, drill=drill) + f"{_OVER[kind][language]} {act}", who="", where="", act=act)


def phone_silent(language: Language) -> Wording:
    """The words of the message that her own device isn't reporting."""
    return Wording(_lead(language) + _PHONE_SILENT[language], who="", where="", act="")


def ministry(language: Language, *, distance_m: float | None, order_from_ms: int | None = None) -> Wording:
    """The words of a notice of the Ministry. `distance_m` is the location that goes with it, metres; None without a location."""
    who, act = _who(language, order_from_ms), ACTS[InstructedAct.KEEP_PHONE][language]
    if distance_m is None:
        return Wording(_lead(language) + " ".join((_BREACH[language], _END[language])), who=who, where="", act=act)
    where = _about(language, distance_m)
    text = " ".join((_BREACH[language], f"{where}.".capitalize(), _CONFIDENTIAL[language]))
    return Wording(_lead(language) + text, who=who, where=where, act=act)


def _lead(language: Language, *, drill: bool = False) -> str:
    return (_DRILL[language] if drill else "") + _LEAD[language]


def _who(language: Language, order_from_ms: int | None) -> str:
    """The respondent of her order. If she has several, the order's first day says which: it names nobody to another reader."""
    if order_from_ms is None:
        return _WHO[language]
    day = datetime.fromtimestamp(order_from_ms / 1000, UTC).astimezone(KOREA)
    if language is _KO:
        return f"{day.year}. {day.month}. {day.day}. {_WHO[_KO]}"
    return f"{_WHO[_EN]} of {day.day} {_MONTHS[day.month - 1]} {day.year}"


def _where(present: Instruction, language: Language, distance: Distance | None) -> str:
    if present.kind is not ThreatKind.RING:
        of_place = _WHERE_OF_PLACE if present.of_place else {}
        return {**_WHERE, **of_place}[present.kind][language]
    if present.is_unseen:
        last = _within(language, present)
        return f"마지막으로 {last}, 지금 위치는 알 수 없음" if language is _KO else f"last {last}, position unknown now"
    if distance is None:
        return _within(language, present)
    near_m = distance.distance_m
    where = (
        _within(language, present) if near_m is None or near_m >= FIGURES_WITHIN_M else _from(language, present, near_m)
    )
    at = datetime.fromtimestamp(distance.at_ms / 1000, UTC).astimezone(KOREA)
    return f"{_TREND[distance.trend][language]}{where} ({at:%H:%M})"


def _within(language: Language, present: Instruction) -> str:
    ring = f"{present.ring_m / 1000:g} km" if present.ring_m >= 1000 else f"{present.ring_m:g} m"
    if language is _KO:
        return f"귀하의 보호 장소에서 {ring} 이내" if present.of_place else f"귀하로부터 {ring} 이내"
    return f"within {ring} of a protected place of yours" if present.of_place else f"within {ring} of you"


def _from(language: Language, present: Instruction, distance_m: float) -> str:
    about = _about(language, distance_m)
    if language is _KO:
        return f"귀하의 보호 장소에서 {about}" if present.of_place else f"귀하로부터 {about}"
    return f"{about} from a protected place of yours" if present.of_place else f"{about} from you"


def _about(language: Language, distance_m: float) -> str:
    if distance_m < _STEP_M:
        return f"{_STEP_M} m 미만" if language is _KO else f"less than {_STEP_M} m"
    # Rounded down, so that the wearer never seems farther than he is.
    step_m = int(distance_m // _STEP_M) * _STEP_M
    return f"약 {step_m} m" if language is _KO else f"about {step_m} m"
