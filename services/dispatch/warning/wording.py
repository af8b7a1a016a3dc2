"""Texts of messages to protected persons, in Korean and English. Pure.

A text works without sound for a person who mustn't speak. It reveals neither names nor positions to another reader. It never says
that all is well, since positions can be wrong and another person may hold the phone. It doesn't promise that police are coming either:
the warning leg works when the police leg doesn't, and somebody else may hold the phone.
"""

from __future__ import annotations

from enum import Enum

from services.dispatch.domain.enums import Demand
from services.dispatch.warning.domain import Notice

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


_KO, _EN = Language.KOREAN, Language.ENGLISH
_LEAD = {_KO: "[알림] ", _EN: "Notice: "}
_DRILL = {_KO: "[훈련] ", _EN: "[Drill] "}
_END = {
    _KO: "말하기 어려우면 112에 문자로 알릴 수 있습니다.",
    _EN: "If you can't speak, 112 takes text messages.",
}
_ACT = {
    Demand.WARN: {_KO: "휴대전화를 곁에 두십시오.", _EN: "Keep your phone with you."},
    Demand.NOTIFY: {
        _KO: "문을 잠그거나 사람이 있는 곳으로 갈 준비를 하십시오.",
        _EN: "Be ready to lock the door or to go where there are people.",
    },
    Demand.RESPOND: {
        _KO: "문을 잠그거나 사람이 있는 곳으로 가십시오.",
        _EN: "Lock the door or go where there are people.",
    },
}
_AT_PLACE = {
    _KO: "그곳에 가지 마십시오. 그곳에 있다면 문을 잠그십시오.",
    _EN: "Don't go there. If you are there, lock the door.",
}
_STATEMENTS = {
    Notice.COMING: {_KO: "이쪽으로 오고 있을 수 있습니다.", _EN: "may be coming your way."},
    Notice.UNSEEN: {
        _KO: "위치를 알 수 없고 가까이 있을 수 있습니다.",
        _EN: "position unknown, may be near.",
    },
    Notice.TAMPERED: {
        _KO: "장치에 이상이 있어 위치를 믿을 수 없습니다. 가까이 있을 수 있습니다.",
        _EN: "a device reports tampering, its position can't be relied on. May be near.",
    },
}
_WHOLE = {
    Notice.NEUTRAL: {_KO: "확인할 알림이 있습니다.", _EN: "there is a message for you."},
    Notice.STAY_INSIDE: {
        _KO: "밖으로 나가지 마십시오. 문과 창을 잠그고 창에서 떨어지십시오. " + _END[_KO],
        _EN: "stay inside. Lock doors and windows and keep away from them. " + _END[_EN],
    },
    Notice.LEAVE: {
        _KO: "지금 그곳을 떠나 사람이 있는 곳으로 가십시오. 평소와 다른 길로 가십시오. " + _END[_KO],
        _EN: "leave now and go where there are people, by another way than usual. " + _END[_EN],
    },
    Notice.OVER: {
        _KO: "앞선 알림이 끝났습니다. 위치는 틀릴 수 있으니 계속 주의하십시오.",
        _EN: "the earlier notice has ended. Positions can be wrong: stay attentive.",
    },
    Notice.ONE_OVER: {
        _KO: "앞선 알림 가운데 하나가 끝났지만, 다른 알림은 계속됩니다. 그 알림의 안내를 계속 따르십시오.",
        _EN: "one of the earlier notices has ended, but another one continues. Keep doing what it says.",
    },
    Notice.MINISTRY_OVER: {
        _KO: "법무부의 앞선 통지가 끝났습니다. 위치는 틀릴 수 있으니 계속 주의하십시오.",
        _EN: "the earlier notice of the Ministry of Justice has ended. Positions can be wrong: stay attentive.",
    },
    Notice.PHONE_SILENT: {
        _KO: "휴대전화에서 위치가 오지 않습니다. 전원과 위치, 통신을 확인하십시오. 그동안 알림이 오지 않을 수 있습니다.",
        _EN: "your phone isn't reporting its position. Check that it is on and has location and network. "
        "Until then you may not be warned.",
    },
}
_BREACH = {
    _KO: "법무부 통지: 접근금지를 어겼거나 어길 우려가 큽니다.",
    _EN: "Ministry of Justice: a breach of the no-approach order, or a marked risk of one.",
}
_CONFIDENTIAL = {
    _KO: "이 위치 정보를 남에게 알리거나 다른 목적에 쓰면 처벌받을 수 있습니다.",
    _EN: "Passing this on, or using it otherwise, is punishable.",
}
"""Tag Act 36(4)."""
_CHANGE = {
    DistanceTrend.NEARER: {_KO: "가까워졌습니다", _EN: "nearer"},
    DistanceTrend.FARTHER: {_KO: "멀어졌습니다", _EN: "farther away"},
    DistanceTrend.UNKNOWN: {_KO: "거리가 바뀌었습니다", _EN: "the distance has changed"},
}

BUTTONS = {_KO: ("확인", "알겠음", "닫기"), _EN: ("OK", "Got it", "Close")}
"""The three answers, in the order of their numbers. Each person agrees with the police which answer, if any, means duress."""
ANSWERED = {_KO: "확인되었습니다.", _EN: "Noted."}
"""Text that is shown after every answer, the first and any further one."""
ASKED = {_KO: "알림을 보셨습니까?", _EN: "Have you seen the notice?"}


def text(
    notice: Notice,
    demand: Demand,
    language: Language,
    *,
    ring_m: float = 0.0,
    of_place: bool = False,
    distance_m: float | None = None,
    change: DistanceTrend = DistanceTrend.UNKNOWN,
    drill: bool = False,
) -> str:
    """The text of a message. `distance_m` is the present distance to the wearer, metres; None if unknown or not to be revealed."""
    lead = (_DRILL[language] if drill else "") + _LEAD[language]
    if notice in _WHOLE:
        return lead + _WHOLE[notice][language]
    if notice is Notice.MINISTRY:
        return lead + _ministry(language, distance_m)
    if notice is Notice.APPROACH:
        statement = _within(language, ring_m, of_place)
    elif notice is Notice.CHANGED:
        statement = _changed(language, ring_m, distance_m, change=change)
    else:
        statement = _STATEMENTS[notice][language]
    act = _AT_PLACE[language] if of_place else _ACT[demand][language]
    return lead + " ".join((statement, act, _END[language]))


def _ministry(language: Language, distance_m: float | None) -> str:
    if distance_m is None:
        return " ".join((_BREACH[language], _END[language]))
    return " ".join((_BREACH[language], f"{_about(language, distance_m)}.".capitalize(), _CONFIDENTIAL[language]))


def _within(language: Language, ring_m: float, of_place: bool) -> str:
    if language is _KO:
        return f"보호 장소에서 {_metres(ring_m)} 이내." if of_place else f"{_metres(ring_m)} 이내."
    return f"within {_metres(ring_m)} of a protected place." if of_place else f"within {_metres(ring_m)}."


def _changed(language: Language, ring_m: float, distance_m: float | None, *, change: DistanceTrend) -> str:
    statement = _CHANGE[change][language]
    if distance_m is None or distance_m >= FIGURES_WITHIN_M:
        where = f"{_metres(ring_m)} 이내" if language is _KO else f"within {_metres(ring_m)}"
    else:
        where = _about(language, distance_m)
    return f"{statement}: {where}." if language is _KO else f"{statement}, {where}."


def _about(language: Language, distance_m: float) -> str:
    if distance_m < _STEP_M:
        return f"{_STEP_M} m 미만" if language is _KO else f"less than {_STEP_M} m"
    # Rounded down, so that the wearer never seems farther than he is.
    step_m = int(distance_m // _STEP_M) * _STEP_M
    return f"약 {step_m} m" if language is _KO else f"about {step_m} m"


def _metres(ring_m: float) -> str:
    return f"{ring_m / 1000:g} km" if ring_m >= 1000 else f"{ring_m:g} m"
