"""All texts of the pages, in Korean and English. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.common.words import Word, in_small_letters, keyed, within_a_line
from services.common.words.alerts import ALERT_PHASE_WORDS, ALERT_WORDS, DEMAND_WORDS, SPOOFING_WARNING, TASK_WORDS
from services.common.words.articles import ARTICLE_WORDS, PURPOSE_WORDS
from services.common.words.contacts import CONTACT_STATE_WORDS, OFFICER_NEEDS_HELP, WARNING_FLAG_WORDS
from services.common.words.reasons import CLOSE_CAUSE_WORDS, ESCALATION_REASON_WORDS
from services.common.words.states import LEG_WORDS, STATE_WORDS, UNIT_STATE_WORDS
from services.console.pages.desk_texts import DESK_TEXTS, DUTY_TEXTS, OPERATOR_TEXTS, PHONE_TEXTS, STATISTICS_TEXTS
from services.console.pages.live_texts import LIVE_ISLAND, LIVE_TEXTS
from services.console.pages.record_texts import RECORD_TEXTS
from services.console.pages.review_texts import DISCLOSURE_TEXTS, MATCH_REVIEW_TEXTS, REVIEW_TEXTS

LANGUAGES = ("ko", "en")

_FLAGS: Mapping[str, Word] = {
    **{name.lower().replace("_", "-"): word for name, word in {**WARNING_FLAG_WORDS, **CONTACT_STATE_WORDS}.items()},
    "distress": OFFICER_NEEDS_HELP,
}
"""Words of the flags by the names that `translate.FLAGS` gives them."""

TEXTS: dict[str, tuple[str, str]] = {
    **LIVE_TEXTS,
    **OPERATOR_TEXTS,
    **MATCH_REVIEW_TEXTS,
    **STATISTICS_TEXTS,
    **REVIEW_TEXTS,
    **DISCLOSURE_TEXTS,
    **DUTY_TEXTS,
    **DESK_TEXTS,
    **RECORD_TEXTS,
    **PHONE_TEXTS,
    **STATE_WORDS,
    **UNIT_STATE_WORDS,
    **in_small_letters(LEG_WORDS),
    **ALERT_WORDS,
    **DEMAND_WORDS,
    **CLOSE_CAUSE_WORDS,
    **keyed("basis_", ARTICLE_WORDS),
    **keyed("purpose_", PURPOSE_WORDS),
    **keyed("flag_", _FLAGS),
    **keyed("panic_", within_a_line({name: _FLAGS[name] for name in ("duress", "no-receipt", "no-contact")})),
    "flag_spoofing": SPOOFING_WARNING,
    **keyed("phase_", ALERT_PHASE_WORDS),
    "title": ("탄뎀 관제", "Tandem console"),
    "skip": ("본문으로 건너뛰기", "Skip to content"),
    "live": ("실시간", "Live"),
    "search": ("검색", "Search"),
    "devices": ("단말 상태", "Devices"),
    "language": ("English", "한국어"),
    "to_dark": ("어두운 화면", "Dark"),
    "to_light": ("밝은 화면", "Light"),
    "sign_in": ("로그인", "Sign in"),
    "sign_out": ("로그아웃", "Sign out"),
    "sign_in_dev": (
        "개발용 로그인: 이 컴퓨터에서만 됩니다. 암호는 없습니다.",
        "Development sign-in: on this machine only, without a password.",
    ),
    "sign_in_none": (
        "이 콘솔에는 로그인 수단이 설정되지 않았습니다.",
        "No way to sign in is configured for this console.",
    ),
    "sign_in_oidc": (
        "기관 계정으로 로그인합니다.",
        "Sign in with your agency's account.",
    ),
    "ended_closed": (
        "기관 계정이 닫혔거나 로그인이 종료되어 로그아웃되었습니다. 다시 로그인하십시오.",
        "You were signed out, because your agency's account was closed or its sign-in ended. Sign in again.",
    ),
    "ended_role_changed": (
        "계정의 권한이 바뀌어 로그아웃되었습니다. 새 권한으로 다시 로그인하십시오.",
        "You were signed out, because your account's role has changed. Sign in again with the new role.",
    ),
    "go_on": ("계속", "Continue"),
    "again": ("다시 로그인", "Sign in again"),
    "not_signed_in": ("로그인하지 못했습니다", "You are not signed in"),
    "refused_provider_away": (
        "기관의 로그인 서버가 응답하지 않습니다. 이미 로그인한 사람은 계속 쓸 수 있습니다.",
        "The agency's sign-in server doesn't answer. Users who are signed in already can continue.",
    ),
    "refused_provider_refused": (
        "기관의 로그인 서버가 로그인을 거절했습니다.",
        "The agency's sign-in server has refused the sign-in.",
    ),
    "refused_state": (
        "이 브라우저에서 시작한 로그인이 아니거나 10분이 지났습니다. 다시 로그인하십시오.",
        "This sign-in was started in another browser, or more than 10 minutes ago. Sign in again.",
    ),
    "refused_token": (
        "로그인 서버의 응답을 확인할 수 없습니다. 운영자에게 알리십시오.",
        "The answer of the sign-in server can't be verified. Tell the operators of the console.",
    ),
    "refused_no_role": (
        "이 계정에는 콘솔 권한이 없습니다.",
        "This account has no role in the console.",
    ),
    "refused_other_role": (
        "이 콘솔은 다른 소속 전용입니다.",
        "This console is for another role than this account's.",
    ),
    "refused_several_roles": (
        "이 계정에 소속이 둘 이상 지정되어 있어 로그인할 수 없습니다.",
        "This account has more than one role. Have all but one removed.",
    ),
    "name": ("이름 (영문 소문자, 숫자, -)", "Name (a-z, 0-9, -)"),
    "role": ("소속", "Role"),
    "role_police": ("경찰 112상황실", "Police 112 room"),
    "role_probation": ("위치추적 관제센터 (보호관찰)", "Location tracking centre (probation)"),
    "role_reviewer": ("사후 검토자", "Reviewer"),
    "role_operator": ("운영자", "Operator"),
    "incidents": ("사건", "Incidents"),
    "alerts": ("경보", "Alerts"),
    "map": ("지도", "Map"),
    "no_incidents": ("열린 사건이 없습니다.", "No incidents."),
    "bar": ("열린 사건", "Open incidents"),
    "bar_open": ("열린 사건 {n}건", "Open incidents: {n}"),
    "bar_none": ("열린 사건 없음", "No open incidents"),
    "bar_unclosed": ("종결 대기 {n}건", "To be closed: {n}"),
    "bar_as_of": ("{at} 기준", "as of {at}"),
    "bar_unknown": ("열린 사건 수 확인 불가", "Open incidents: unknown"),
    "bar_live": ("실시간 화면 열기", "Open the live page"),
    "panic_called": ("긴급 신고 {at}", "Panic call {at}"),
    "panic_withdrawn": ("{at} 취소함", "taken back at {at}"),
    "panic_no_answer": ("피해자 응답 없음", "no answer from her"),
    "panic_earlier": ("호출 뒤 응답 없음, 이전 알림 확인", "no answer since, warning confirmed before at"),
    "panic_confirmed": ("피해자 알림 확인", "she confirmed the warning"),
    "silent_wearers": ("무보고 피부착자들", "Silent wearers"),
    "no_alerts": ("새 경보가 없습니다.", "No new alerts."),
    "urgency": ("상태", "Status"),
    "incident": ("사건", "Incident"),
    "opened": ("발생", "Opened"),
    "ended": ("종료", "Ended"),
    "deadline": ("기한", "Deadline"),
    "overdue": ("기한 초과", "overdue"),
    "take": ("접수", "Accept"),
    "answer": ("응답", "Answer"),
    "next_step": ("다음 단계", "Next step"),
    "refuse": ("거절", "Refuse"),
    "refuse_hint": (
        "거절하면 바로 다음 순번에 요청됩니다. 사유는 소속 기관에만 남습니다.",
        "The next in line is asked at once. The reason stays with your agency.",
    ),
    "close": ("종결", "Close"),
    "close_hint": ("메모는 소속 기관에만 남습니다.", "The note stays with your agency."),
    "not_answered": ("응답이 처리되지 않았습니다", "The answer was not accepted"),
    "back_to_incident": ("사건으로 돌아가기", "Back to the incident"),
    "field_assignment": ("대상", "Destination"),
    "field_offer": ("요청 번호", "Offer"),
    "field_seen": ("화면에 표시된 상태", "State shown on the page"),
    "field_state": ("단계", "Step"),
    "field_reason": ("사유", "Reason"),
    "field_cause": ("종결 사유", "Closing cause"),
    "field_unit": ("대원", "Unit"),
    "field_unit_name": ("무전으로 보낸 대원", "Unit sent by radio"),
    "field_note": ("메모 (기타일 때 필수)", "Note (needed for Other)"),
    "why_missing": ("입력해야 합니다", "is missing"),
    "why_too_long": ("너무 깁니다", "is too long"),
    "why_unreadable": ("쓸 수 없는 내용입니다", "can't be used"),
    "why_unit_missing": ("목록에서 고르십시오", "choose one of the list"),
    "why_unit_unreadable": ("목록에서 고르십시오", "choose one of the list"),
    "why_unit_name_missing": ("이름을 쓰십시오 (예: 순찰 12호)", "write its name (example: patrol 12)"),
    "why_unit_name_too_long": (
        "60자 이하로 쓰십시오 (예: 순찰 12호)",
        "write at most 60 characters (example: patrol 12)",
    ),
    "why_unit_name_unreadable": (
        "줄바꿈과 제어 문자 없이 쓰십시오 (예: 순찰 12호)",
        "write one line of printable characters (example: patrol 12)",
    ),
    "answer_SENT_ASKED": (
        "{by} 님이 {at}에 {unit} 대원에게 먼저 요청했습니다. 더 보내려면 다시 고르십시오.",
        "{by} asked {unit} at {at}. Choose once more if another unit has to go.",
    ),
    "answer_SENT_ACCEPTED": ("{unit} 대원이 이미 수락했습니다.", "{unit} has accepted it already."),
    "answer_SENT_RADIO": (
        "{by} 님이 {at}에 이미 무전으로 {unit} 지령을 기록했습니다.",
        "{by} sent {unit} by radio at {at} already.",
    ),
    "answer_NOT_ON_DUTY": (
        "그 대원은 이제 근무 중이 아닙니다. 다른 대원을 고르십시오.",
        "That unit isn't on duty any more. Choose another one.",
    ),
    "answer_NO_ROSTER": (
        "대원 명부가 없는 기관입니다. 무전으로 지령하고 기록하십시오.",
        "Your agency keeps no roster here. Send a unit by radio, and record it.",
    ),
    "answer_UNIT_HAS_IT": ("이미 맡은 대원이 있습니다.", "A unit has it already."),
    "answer_IS_EXERCISE": (
        "훈련에는 명부의 대원을 보내지 않습니다. 무전 지령으로 기록하십시오.",
        "No unit of the roster is sent to an exercise. Record one as sent by radio.",
    ),
    "answer_CANT_SEND": ("지금은 보낼 일이 없습니다.", "Nobody has to be sent now."),
    "answer_NOBODY_ASKED": (
        "지령받은 대원이 없습니다. 먼저 대원을 보내거나 무전 지령을 기록하십시오.",
        "No unit was ordered to go. Send a unit first, or record one that was sent by radio.",
    ),
    "answer_NO_SUCH_OFFER": ("해당 요청이 없습니다.", "There is no such offer."),
    "answer_OFFERED_ON": (
        "그 사이 다른 대원이나 상황실에 요청되었습니다. 현재 상태는 아래와 같습니다.",
        "Somebody else was asked or sent since the page was loaded. The current state is below.",
    ),
    "answer_MOVED_ON": (
        "화면이 표시된 뒤 상태가 바뀌었습니다. 현재 상태를 확인하고 다시 응답하십시오.",
        "The state has changed since the page was loaded. Check the current state below and answer again.",
    ),
    "answer_CANT_TAKE": ("지금은 접수할 요청이 없습니다.", "There is no offer to accept now."),
    "answer_TAKEN_BY": ("다른 사람이 먼저 접수했습니다", "Another user has accepted it first"),
    "answer_CANT_REFUSE": ("현재 상태에서는 거절할 수 없습니다.", "It can't be refused in its current state."),
    "answer_CANT_GO_ON": (
        "접수되지 않아 진행할 수 없습니다.",
        "Accept it first: only an accepted assignment can proceed.",
    ),
    "answer_CANT_CLOSE": (
        "접수되지 않아 종결할 수 없습니다.",
        "Accept it first: only an accepted assignment can be closed.",
    ),
    "answer_STEP_LEFT_OUT": ("단계를 건너뛸 수 없습니다.", "Steps cannot be skipped."),
    "answer_CLOSED_OTHERWISE": ("이미 다른 사유로 종결되었습니다.", "It was already closed for another cause."),
    "answer_400": ("내용이 올바르지 않습니다", "The form has a wrong value"),
    "answer_403": ("이 소속은 응답할 수 없습니다", "This role may not answer"),
    "answer_404": ("소속 기관의 대상이 아닙니다", "Not a destination of your own leg"),
    "answer_409": ("현재 상태에서는 할 수 없습니다", "It can't be done in its current state"),
    "answer_502": ("알 수 없는 오류입니다. 전화로 알리십시오.", "Unknown error. Report it by telephone."),
    "answer_503": (
        "기관 서버가 응답하지 않습니다. 처리되었는지 알 수 없으니 다시 열어 확인하고, 급하면 전화하십시오.",
        "The leg doesn't answer, and the answer may be stored or not: reload the page to see, and telephone if it is urgent.",
    ),
    "show_ended": ("종료된 사건도 보기", "Show ended incidents too"),
    "sound": ("소리 알림", "Sound"),
    "test_sound": ("소리 시험", "Test sound"),
    "connected": ("연결됨", "Connected"),
    "connecting": ("연결 중", "Connecting"),
    "signed_out": (
        "로그아웃됨: 화면이 최신이 아닙니다. 다시 로그인하십시오",
        "Signed out: this page is not current. Sign in again",
    ),
    "lost": (
        "연결 끊김: 화면이 최신이 아닙니다. 전화를 쓰십시오",
        "Connection lost: this page is not current. Use the telephone",
    ),
    "part_away": ("일부 연결 끊김", "Partly connected"),
    "new_alarm": ("새 출동 요청", "New demand to respond"),
    "new_panic": ("피해자 긴급 신고 {at}", "Panic call at {at}"),
    "exercise": ("훈련", "Exercise"),
    "group_of": ("같은 원인", "same cause"),
    "open_group": ("펼치기", "Show all"),
    "unknown_position": ("위치 불명", "Position unknown"),
    "AVAILABLE": ("출동 가능", "Available"),
    "BUSY": ("다른 임무 중", "Busy"),
    "OFF": ("근무 아님", "Off duty"),
    "wearer": ("피부착자", "Wearer"),
    "protected": ("피해자", "Protected person"),
    "place": ("보호장소", "Protected place"),
    "accuracy": ("오차", "accuracy"),
    "review": ("사건 검토", "Incident review"),
    "severity": ("요구 조치", "Demand"),
    "order": ("명령", "Order"),
    "race": ("도착 예상", "Arrival forecast"),
    "race_losing": ESCALATION_REASON_WORDS["RACE_LOST"],
    "timeline": ("양 기관 조치", "Both legs, step by step"),
    "no_steps": ("조치가 없습니다.", "No steps."),
    "to": ("대상", "To"),
    "state": ("상태", "State"),
    "at": ("시각", "At"),
    "offered": ("요청", "Offered"),
    "received": ("수신", "Received by the desk"),
    "step_delivered": ("전달됨", "Delivered"),
    "step_noted": ("변동 기록", "Noted"),
    "acknowledged": ("접수 시각", "Accepted at"),
    "by": ("처리자", "By"),
    "latency": ("보고부터 요청까지", "From report to offer"),
    "evidence": ("지도 재생과 판단 근거", "Map replay and grounds of the decision"),
    "evidence_why": (
        "위치가 포함됩니다. 근거 조문과 목적이 열람 기록에 남습니다.",
        "The evidence shows positions. The legal basis and the purpose are recorded in the ledger of disclosures.",
    ),
    "legal_basis": ("근거 조문", "Legal basis"),
    "purpose": ("목적", "Purpose"),
    "show": ("열람", "Show"),
    "download": ("증거 내려받기", "Download the evidence"),
    "replay": ("지도 재생", "Map replay"),
    "play": ("재생", "Play"),
    "pause": ("멈춤", "Pause"),
    "time": ("시각", "Time"),
    "decision": ("판단 설명", "Explanation of the decision"),
    "decided": ("판단", "Decided"),
    "ring": ("거리", "Ring"),
    "distance": ("떨어진 거리", "Distance"),
    "probability": ("구역 안 확률", "Probability inside"),
    "inside": ("구역 안에 있던 시간", "Time inside"),
    "least": ("최소 거리", "Minimum distance"),
    "least_assumed": ("진입 시 추정값", "assumed at the entry"),
    "rests_on": ("판단에 쓰인 보고", "Reports behind the decision"),
    "entry": ("기록 번호", "Entry"),
    "device": ("단말", "Device"),
    "age": ("경과", "Age"),
    "silence": ("이전 10분 중 위치 없던 최장 시간", "Longest time without a position in the 10 min before"),
    "arrived": ("도착", "Arrived"),
    "rules": ("적용 설정", "Settings"),
    "not_told": ("보호관찰에는 제공하지 않음", "Not disclosed to probation"),
    "whole_not": (
        "주의: 사건 이전 2시간의 기록이 모두 남아 있지는 않습니다.",
        "Caution: the log no longer has all records of the two hours before the incident.",
    ),
    "explain_hint": ("같은 판단이 다시 나오는지 확인:", "To check that the decision can be reproduced:"),
    "trace": ("처리 과정", "Trace"),
    "trace_none": (
        "처리 과정이 아직 없습니다. 몇 초 뒤에 나옵니다.",
        "No trace yet; it comes after a few seconds.",
    ),
    "trace_cut": ("앞의 5,000건만 보입니다.", "Only the first 5,000 are shown."),
    "span": ("단계", "Step"),
    "service": ("서비스", "Service"),
    "start": ("시작", "Start"),
    "duration": ("걸린 시간", "Took"),
    "case_versions": ("판단에 적용된 명령", "Orders behind the decision"),
    "ledger": ("열람 기록", "Disclosures of personal data"),
    "ledger_reviewer": ("열람 기록은 검토자에게만 보입니다.", "Only reviewers see the disclosures."),
    "ledger_none": ("이 사건의 열람 기록이 없습니다.", "No disclosures in this incident."),
    "deed": ("행위", "Action"),
    "record": ("기록", "Record"),
    "who": ("열람자", "Reader"),
    "from": ("부터", "From"),
    "until": ("까지", "Until"),
    "cause": ("원인", "Cause"),
    "outcome": ("결과", "Outcome"),
    "office": ("관서", "Office"),
    "unit": ("출동 대원", "Unit"),
    "text": ("사건·명령·대상 번호", "Incident, order or subject"),
    "any": ("전체", "Any"),
    "open": ("진행 중", "Open"),
    "over": ("종료", "Ended"),
    "find": ("찾기", "Find"),
    "found": ("건", "found"),
    "cut": ("최근 5,000건에서 찾았습니다.", "Only the newest 5,000 incidents were searched."),
    "count": ("건수", "Count"),
    "reason": ("사유", "Reason"),
    "case": ("사건 연결", "Case"),
    "quarantine": ("거부된 보고", "Refused reports"),
    "quarantine_none": ("거부된 보고가 없습니다.", "No report was refused."),
    "quarantine_role": ("거부된 보고는 운영자에게만 보입니다.", "Only operators see refused reports."),
    "sender": ("보낸 곳", "Sender"),
    "last": ("최근", "Last"),
    "source_GNSS": ("위성", "satellites"),
    "source_WIFI": ("와이파이", "Wi-Fi"),
    "source_CELL": ("기지국", "radio cell"),
    "silent": ("무보고·이상 단말", "Silent and disturbed devices"),
    "silent_none": ("이 콘솔이 시작된 뒤로는 없습니다.", "None since this console started."),
    "attribution": ("경계: 국토지리정보원", "Boundaries: NGII of Korea"),
    "PHONE_LOCATION_OFF": ("휴대전화 위치 꺼짐", "Phone without location"),
    "check": TASK_WORDS["CHECK"],
    "notice": ("법무부 통지", "Ministry's notice"),
    "notice_location": ("위치 제공 가능", "a location may go with it"),
    "notice_ground": ("법무부 통지 근거", "Ground of the Ministry's notices"),
    "notice_none": ("없음: 피해자에게 통지·위치 제공 불가", "None: no notice and no location for her"),
    "notice_unread": ("지금 확인 불가: 등록 서버 응답 없음", "Not known now: the registry doesn't answer"),
    "order_over": ("명령 종료", "order over"),
    "flag_losing": ESCALATION_REASON_WORDS["RACE_LOST"],
    "flag_absent-probation": ("보호관찰 무응답: 전화하십시오", "Probation silent: telephone"),
    "flag_absent-police": ("경찰 무응답: 전화하십시오", "Police silent: telephone"),
    "flag_check": TASK_WORDS["CHECK"],
    "flag_absent-warning": ("피해자 알림 무응답", "Warning leg silent"),
}

ISLAND = (
    *("take", "overdue", "connected", "connecting", "lost", "part_away", "new_alarm", "exercise"),
    *("group_of", "unknown_position", "wearer", "protected", "place", "accuracy"),
    *("source_GNSS", "source_WIFI", "source_CELL"),
    *(
        *("was_due", "replay_fix", "replay_unit_fix"),
        "units_none",
        "late_by",
        *(key for key in REVIEW_TEXTS if key.startswith("expected_") and key[9:].isupper()),
    ),
    *("reviews", "reviews_alarm", "reviews_unknown", "minutes"),
    *("open_group", "attribution", "play", "pause", "title", "unit", "probation", "police", "warning", "ring", "to"),
    *("signed_out", "new_panic", "silent_wearers", "bar_unclosed"),
    *(key for key in TEXTS if key.startswith("panic_")),
    *LIVE_ISLAND,
    "answer_503",
    *(key for key in TEXTS if key.startswith("phase_")),
    *(key for key in TEXTS if key.startswith("basis_")),
    "order",
    *(key for key in TEXTS if (key.isupper() and key not in STATISTICS_TEXTS) or key.startswith("flag_")),
)
"""Keys of the texts that the scripts need."""
BAR_ISLAND = (
    *(
        "connected",
        "connecting",
        "lost",
        "part_away",
        "signed_out",
        "source_incidents",
        "source_steps",
        "source_alerts",
    ),
    *("source_reviews", "new_alarm", "new_panic", "exercise", "overdue", "deadline", "sec", "min", "hour"),
    *(key for key in TEXTS if key.startswith(("bar_", "panic_"))),
    *(key for key in TEXTS if key.isupper() and key not in STATISTICS_TEXTS),
)
"""Keys of the texts that the bar of open incidents needs."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts in one language."""

    language: str
    """One of LANGUAGES."""

    def __call__(self, key: str) -> str:
        """Returns the text of a key; a key without a text is returned as it is."""
        pair = TEXTS.get(key)
        return pair[LANGUAGES.index(self.language)] if pair else key

    def island(self) -> dict[str, str]:
        """Returns the texts that the scripts need."""
        return {key: self(key) for key in ISLAND}

    def bar(self) -> dict[str, str]:
        """Returns the texts that the bar of open incidents needs."""
        return {key: self(key) for key in BAR_ISLAND}
