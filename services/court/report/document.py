"""A report as PDF, and the sections of it that show no course: head, summary, order, decision, answers, authenticity."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typst

from services.common import times
from services.common.failure import CommandFailed
from services.common.messaging import flow
from services.court.report.facts import DecidedAlert, LegStep, ReportFacts
from services.court.report.words import Words, basis_text, clock_time, metres, percent
from tandem.common.v1 import alert_pb2, exercise_pb2, geometry_pb2, log_pb2
from tandem.dispatch.v1 import dispatch_pb2

_FOLDER = Path(__file__).parent
_TEMPLATES, _FONTS = _FOLDER / "templates", _FOLDER / "fonts"


def typeset_pdf(template: str, content: Mapping[str, Any], words: Words, *, at_ms: int) -> bytes:
    """Typesets a template of `templates` with its content. `at_ms` is the document's date, milliseconds since 1970 UTC.

    Only the enclosed fonts are used, since a system's fonts differ from machine to machine. Raises CommandFailed if the typesetter
    refuses.
    """
    inputs = {"content": json.dumps({**content, "language": words.language, "page": words("page")}, ensure_ascii=False)}
    try:
        made: bytes = typst.compile(
            _TEMPLATES / f"{template}.typ",
            root=_TEMPLATES,
            font_paths=[_FONTS],
            ignore_system_fonts=True,
            format="pdf",
            sys_inputs=inputs,
            timestamp=at_ms // 1000,
        )
    except RuntimeError as error:
        raise CommandFailed(f"the report can't be typeset: {error}") from None
    return made


Rows = list[list[str]]


def head(facts: ReportFacts, words: Words) -> Rows:
    """Rows of the head: the incident, the bundle, and who made it for whom on which ground."""
    manifest = facts.manifest
    notes = [words(f"is_whole_{manifest['for']}" if manifest["whole"] else "not_whole")]
    if not manifest["ended"]:
        notes.append(words("not_ended"))
    return [
        [words("incident"), manifest["incident_id"]],
        [words("for"), words(manifest["for"])],
        [words("bundle_made"), times.korean_date_time(manifest["made_at_ms"])],
        [words("made_by"), manifest["made_by"]],
        [words("made_for"), manifest["made_for"]],
        [words("legal_basis"), basis_text(manifest["legal_basis"], words)],
        [words("whole"), " ".join(notes)],
    ]


def is_exercise(facts: ReportFacts) -> bool:
    """Whether the incident was a drill or a canary."""
    return any(fact.alert.exercise != exercise_pb2.EXERCISE_UNSPECIFIED for fact in facts.alerts)


# ── summary ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def summary(facts: ReportFacts, words: Words) -> list[str]:
    """The incident in a few sentences."""
    began, last = times.korean_date_time(facts.began_ms), times.korean_date_time(facts.last_ms)
    sentences = [
        words.text(
            f"사건은 {began}에 시작되어 {last}에 마지막 기록이 있습니다.",
            f"The incident began at {began}; its last record is of {last}.",
        ),
        _decision_sentence(facts, words),
        *_answer_sentences(facts, words),
        *_amendment_sentence(facts, words),
    ]
    nearest = [(_target(id_, facts, words), metres(distance_m)) for id_, distance_m in _nearest(facts).items()]
    if nearest:
        to_each = ", ".join(
            words.text(f"{target}까지 {distance}", f"{distance} from {target}") for target, distance in nearest
        )
        sentences.append(
            words.text(
                f"보고된 위치로 계산한 가장 가까운 거리: {to_each}.",
                f"The least distance by the reported positions: {to_each}.",
            )
        )
    sentences.append(words("no_verdict"))
    return sentences


def _decision_sentence(facts: ReportFacts, words: Words) -> str:
    decisive = facts.decisive
    if decisive is None:
        return words.text("출동을 요구한 판단은 없었습니다.", "No decision demanded a response.")
    decided = clock_time(decisive.decided_ms)
    took = _after_report(decisive, facts, words)
    since = "" if took is None else words.text(f"(보고 접수 후 {took})", f" ({took} after the report)")
    return words.text(
        f"출동은 {decided}에 처음 판단되었습니다{since}.", f"A response was first decided at {decided}{since}."
    )


def _answer_sentences(facts: ReportFacts, words: Words) -> Iterator[str]:
    for leg in ("police", "probation"):
        steps = [step for step in facts.steps if step.leg == leg]
        if not steps:
            missing = words(leg)
            yield words.text(
                f"{missing}의 조치 기록이 이 묶음에 없습니다.", f"The bundle holds no record of {missing}."
            )
            continue
        for offered in (step for step in steps if step.kind == "Offered"):
            yield _answer_sentence(offered, steps, words)
            yield _sent_sentence(offered, steps, words)


def _answer_sentence(offered: LegStep, steps: Sequence[LegStep], words: Words) -> str:
    """When an assignment was first offered, and when it was first accepted."""
    assignment_id = offered.body.get("assignment_id")
    accepted = next(
        (step for step in steps if step.kind == "Acknowledged" and step.body.get("assignment_id") == assignment_id),
        None,
    )
    at, subject = clock_time(offered.at_ms), f"{offered.subject_id}, " if offered.subject_id else ""
    if accepted is None:
        return words.text(
            f"{words(offered.leg)}: {subject}{at} 요청, 이 묶음에 접수 기록 없음.",
            f"{words(offered.leg).capitalize()}: {subject}offered at {at}, no acceptance in the bundle.",
        )
    took = words.duration(accepted.at_ms - offered.at_ms)
    return words.text(
        f"{words(offered.leg)}: {subject}{at} 요청, {took} 뒤 접수.",
        f"{words(offered.leg).capitalize()}: {subject}offered at {at}, accepted {took} later.",
    )


def _sent_sentence(offered: LegStep, steps: Sequence[LegStep], words: Words) -> str:
    """When somebody was first sent for an assignment, and who says so: the unit, an officer by radio, or the agency's own system."""
    sent = next((step for step in steps if _sends(step, offered.body.get("assignment_id"))), None)
    if sent is None:
        return words.text("이 묶음에 출동 기록이 없습니다.", "The bundle holds no record that anybody was sent.")
    took = words.duration(sent.at_ms - offered.at_ms)
    if sent.unit:
        return words.text(f"{took} 뒤 출동팀 {sent.unit} 수락.", f"Unit {sent.unit} accepted {took} later.")
    if sent.kind == "SentByRadio":
        name, by = sent.body.get("unit_name"), sent.by
        return words.text(
            f"{took} 뒤 무전 지령: {name}, 입력자 {by}.", f"Sent by radio {took} later: {name}, entered by {by}."
        )
    return words.text(f"{took} 뒤 출동 보고, 보고자 {sent.by}.", f"Reported as dispatched {took} later, by {sent.by}.")


def _sends(step: LegStep, assignment_id: object) -> bool:
    """Whether somebody goes from this step of an assignment on."""
    accepts = step.kind == "Acknowledged" and bool(step.unit)
    reports = step.kind == "Progressed" and step.body.get("state") == dispatch_pb2.DISPATCHED
    return step.body.get("assignment_id") == assignment_id and (accepts or reports or step.kind == "SentByRadio")


def _amendment_sentence(facts: ReportFacts, words: Words) -> Iterator[str]:
    amendments = facts.amendments.values()
    if amendments:
        last = times.korean_date_time(max(fact.decided_ms for fact in amendments))
        yield words.text(
            f"늦게 도착한 위치 보고로 접근 기록 {len(amendments)}건이 정정되었습니다(마지막 정정 {last}). 정정된 기록이 유효합니다.",
            f"Reports that arrived late amended {len(amendments)} accounts, the last one at {last}. The amended account is valid.",
        )


def _nearest(facts: ReportFacts) -> Mapping[str, float]:
    """The least distance to each target that isn't assumed, metres: by the valid accounts, and by the decisions on rings that were
    not cleared since."""
    cleared_ms = {
        (fact.alert.target_id, fact.alert.ring_m): fact.decided_ms
        for fact in facts.alerts
        if fact.alert.kind == alert_pb2.RING_CLEARED
    }
    found: dict[str, float] = {}
    for fact in facts.alerts:
        alert, measure = fact.alert, fact.measure
        if measure is None or not alert.target_id:
            continue
        if _has_account(fact) and facts.amended_by(fact) is None and not measure.min_distance_assumed:
            distance_m = measure.min_distance_m
        elif measure.HasField("distance_m") and fact.decided_ms > cleared_ms.get((alert.target_id, alert.ring_m), 0):
            distance_m = measure.distance_m
        else:
            continue
        found[alert.target_id] = min(distance_m, found.get(alert.target_id, distance_m))
    return found


def _target(target_id: str, facts: ReportFacts, words: Words) -> str:
    """A person or a place in words."""
    is_place = any(place.place_id == target_id for case in facts.cases for place in case.places)
    return f"{words('place' if is_place else 'protected')} {target_id}"


def _has_account(fact: DecidedAlert) -> bool:
    return fact.measure is not None and fact.measure.HasField("min_distance_m")


def _after_report(fact: DecidedAlert, facts: ReportFacts, words: Words) -> str | None:
    """Time from the receipt of the report that caused an alert until its decision; None if no report caused it."""
    cause = fact.alert.cause
    if not cause.received_wall_us or facts.manifest["clock"]["rate"] != 1:
        return None
    return words.duration(fact.decided_ms - cause.received_wall_us // 1000)


# ── order ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def order_rows(case: log_pb2.CaseSnapshot, words: Words) -> Rows:
    """Rows of an order: who, whom, where, how near, and until when."""
    rings = ", ".join(
        f"{metres(ring.radius_m)} ({words(geometry_pb2.Demand.Name(ring.action))})" for ring in case.rings
    )
    rows = [
        [words("order_id"), case.order_id],
        [words("case"), f"{case.case_id} ({case.version})"],
        [words("wearer"), case.wearer_id],
        [words("protected"), ", ".join(person.person_id for person in case.persons) or "-"],
        [words("place"), ", ".join(place.place_id for place in case.places) or "-"],
        [words("validity"), _validity(case.valid_from_ms, case.valid_until_ms, words)],
        [words("rings"), rings],
    ]
    if case.encounters:
        rows.append([words("encounters"), ", ".join(encounter.encounter_id for encounter in case.encounters)])
    return rows


def _validity(from_ms: int, until_ms: int, words: Words) -> str:
    has_end = 0 < until_ms < times.MAX_MS
    return f"{times.korean_date_time(from_ms)} – {times.korean_date_time(until_ms) if has_end else words('no_end')}"


# ── decision ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def decisions(facts: ReportFacts, words: Words) -> list[dict[str, Any]]:
    """Each alert that demanded a notice or a response, and each account of a ring, in words with its numbers."""
    return [
        {
            "title": f"{clock_time(fact.decided_ms)} {alert_text(fact, words)}",
            "rows": _grounds(fact, facts, words),
        }
        for fact in facts.alerts
        if fact.alert.demand >= geometry_pb2.NOTIFY or fact.alert.kind in _ACCOUNTS
    ]


def alert_text(fact: DecidedAlert, words: Words) -> str:
    """An alert in words: its kind, ring, target, distance and demand."""
    alert, measure = fact.alert, fact.measure
    parts = [words("RING_UNWATCHED") if fact.without_departure else words.alert(alert)]
    if alert.ring_m:
        parts.append(words.text(f"{metres(alert.ring_m)} 기준", f"ring of {metres(alert.ring_m)}"))
    if alert.target_id:
        parts.append(alert.target_id)
    if measure is not None and measure.HasField("distance_m") and not fact.without_departure:
        distance = metres(measure.distance_m)
        parts.append(words.text(f"거리 {distance}", f"distance {distance}"))
    if alert.late:
        parts.append(words.text("늦게 판단됨", "decided late"))
    demand = words(geometry_pb2.Demand.Name(alert.demand)) if alert.demand else "-"
    return f"{', '.join(parts)} → {demand}"


_ACCOUNTS = (alert_pb2.RING_CLEARED, alert_pb2.ACCOUNT_AMENDED)
"""Kinds of alerts that have an account of the time inside a ring."""


def _grounds(fact: DecidedAlert, facts: ReportFacts, words: Words) -> Rows:
    alert, measure = fact.alert, fact.measure
    rows = [[words.text("경보 번호", "Alert"), alert.alert_id]]
    if (valid := facts.amended_by(fact)) is not None:
        when = f"{times.korean_date_time(valid.decided_ms)}, {valid.alert.alert_id}"
        rows.append([words.text("정정됨 (유효하지 않음)", "Amended (no longer valid)"), when])
    if alert.amends:
        rows.append([words.text("정정한 기록", "Amends"), alert.amends])
    rows.append(
        [words.text("근거 기록(로그 항목)", "Rests on"), f"{flow.log_stream(alert.partition)}#{alert.sequence}"]
    )
    if alert.cause.device_id:
        cause = f"{alert.cause.device_id}, {alert.cause.report_id}"
        rows.append([words.text("판단을 일으킨 보고", "Deciding report"), cause])
    if measure is not None:
        rows += _figures(measure, words, with_distance=not fact.without_departure)
    if alert.anomaly:
        rows.append([words.text("이상", "Anomaly"), _anomaly(alert.anomaly, words)])
    if alert.encounter_id:
        rows.append([words("encounter"), alert.encounter_id])
    rules = f"{alert.rules_id}, {words.text('판단 프로그램 버전', 'fold version')} {alert.fold_version}"
    rows.append([words.text("적용 기준", "Rules"), rules])
    return rows


def _anomaly(number: alert_pb2.AnomalyKind.ValueType, words: Words) -> str:
    """An anomaly in words. A kind that a newer version knows is shown by its number."""
    known = number in alert_pb2.AnomalyKind.values()
    return words.numbered("anomaly", alert_pb2.AnomalyKind.Name(number) if known else number)


def _figures(measure: alert_pb2.Measure, words: Words, *, with_distance: bool) -> Iterator[list[str]]:
    if measure.HasField("probability"):
        yield [
            words.text("기준 안에 있을 확률", "Probability of being inside"),
            percent(measure.probability)
            + words.text(" (양쪽 위치의 오차를 반영)", " (from the errors of both positions)"),
        ]
    if measure.HasField("distance_m") and with_distance:
        yield [words.text("거리", "Distance"), metres(measure.distance_m)]
    if measure.HasField("min_distance_m"):
        assumed = words.text(" (가정한 값)", " (assumed)") if measure.min_distance_assumed else ""
        yield [words.text("가장 가까운 거리", "Least distance"), metres(measure.min_distance_m) + assumed]
    for interval in measure.inside:
        from_ms, to_ms = times.from_timestamp(getattr(interval, "from")), times.from_timestamp(interval.to)
        yield [
            words.text("기준 안에 있던 시간", "Inside the ring"),
            f"{clock_time(from_ms)} – {clock_time(to_ms)} ({words.duration(to_ms - from_ms)})",
        ]


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_NAMED_FIELDS = (
    ("Progressed", "state", "state"),
    ("Closed", "cause", "cause"),
    ("Flagged", "flag", "flag"),
    ("Escalated", "escalation_reason", "reason"),
    ("ContactBegun", "plan", "plan"),
    ("ContactStepped", "state", "contact"),
    ("UnitOfferEnded", "state", "offer"),
    ("NoteAdded", "kind", "note"),
    ("NoteAdded", "result", "result"),
)
"""Kind of a step, its field with the number of an enum, and the beginning of the names of its words. A note's text isn't shown, since
it may name people."""


def named_fields(step: LegStep, words: Words) -> Iterator[str]:
    """The numbers of enums in a step, in words: its state, cause, flag or reason."""
    for kind, field, name in _NAMED_FIELDS:
        if step.kind == kind and step.body.get(field):
            yield words.numbered(name, step.body[field])


_ANSWERS = ("Received", "Acknowledged", "Rejected", "Progressed", "SentByRadio", "Closed")


_OFFERS = ("Offered", "Reoffered", "Escalated", "UnitAsked")


def answers(facts: ReportFacts, words: Words) -> Rows:
    """A row for each answer: leg, subject, answer, person, time, and time since the offer before it."""
    rows: Rows = []
    offered: dict[tuple[str, ...], LegStep] = {}
    """Last offer of each assignment, and of each assignment to each unit."""
    for step in facts.steps:
        key = step.leg, str(step.body.get("assignment_id", ""))
        if step.kind in _OFFERS:
            offered[key] = offered[*key, step.unit] = step
        elif step.kind in _ANSWERS:
            # A unit answers its own offer, also if others were asked since.
            since = offered.get((*key, step.unit)) or offered.get(key)
            rows.append(
                [
                    words(step.leg),
                    step.subject_id or "-",
                    ", ".join([words.step_of(step.leg, step.kind), *_whose(step, words), *named_fields(step, words)]),
                    step.by or "-",
                    clock_time(step.at_ms),
                    "-" if since is None else words.duration(step.at_ms - since.at_ms),
                ]
            )
    return rows


def _whose(step: LegStep, words: Words) -> Iterator[str]:
    """The unit that answers or was sent."""
    if step.kind == "SentByRadio":
        yield str(step.body.get("unit_name"))
    elif step.unit:
        yield words.text(f"출동팀 {step.unit}", f"unit {step.unit}")


# ── authenticity ─────────────────────────────────────────────────────────────────────────────────────────────────────


def authenticity(facts: ReportFacts, words: Words, *, bundle_sha256: str) -> Rows:
    """Hashes, key, chain heads and the result of the refold."""
    manifest = facts.manifest
    chains = [
        [f"{words.text('조치 기록 사슬', 'Chain')}: {words(leg)}", f"{chain['head'][0]}  {chain['head'][1]}"]
        for leg, chain in sorted(manifest["chains"].items())
    ]
    missing = [words(leg) for leg in manifest["chains_missing"]]
    if missing:
        chains.append([words.text("없는 사슬", "Chains missing"), ", ".join(missing)])
    return [
        [words.text("증거 묶음 SHA-256", "SHA-256 of the bundle"), bundle_sha256],
        [words.text("묶음을 만든 프로그램", "The bundle was made with"), f"Tandem {manifest['software']}"],
        [words.text("서명 공개키 (Ed25519)", "Public key (Ed25519)"), facts.public_key],
        [words.text("로그", "Log"), f"{manifest['log']['log_id']}, {flow.log_stream(manifest['log']['partition'])}"],
        *chains,
        [words.text("판단 재현", "Refold of the decision"), _replay_text(facts, words)],
    ]


def _replay_text(facts: ReportFacts, words: Words) -> str:
    match facts.replayed:
        case "SAME":
            return words.text(
                f"기록 {facts.entries}건을 다시 계산하여 경보 {len(facts.alerts)}건이 바이트 단위로 같음을 확인했습니다.",
                f"The {facts.entries} enclosed entries give the {len(facts.alerts)} alerts again, byte for byte.",
            )
        case "DIFFERENT":
            differences = "; ".join(facts.differences)
            return words.text(f"주의: 다릅니다: {differences}", f"ATTENTION: it differs: {differences}")
        case _:
            return words.text(
                "이 묶음에는 피해자의 위치가 없어 재현할 수 없습니다. 경찰용 묶음으로 확인하십시오.",
                "This bundle lacks the protected persons' positions: use the bundle for the police.",
            )


def how_to_verify(words: Words) -> list[str]:
    """How a reader verifies the bundle and this document without any server."""
    return [
        words.text(
            "묶음 검증: tandem evidence verify 파일 --public-key CUSTODIAN.pub. 공개키는 이 문서가 아닌 다른 경로로 확인하십시오.",
            "The bundle: tandem evidence verify FILE --public-key CUSTODIAN.pub. Learn the key from elsewhere than this document.",
        ),
        words.text(
            "문서 검증: 이 문서를 만든 프로그램에서 tandem report --bundle 파일 --out 새파일 로 다시 만들면 같은 바이트가 나옵니다.",
            "This document: tandem report --bundle FILE --out NEW gives the same bytes, with the program that made this document.",
        ),
    ]
