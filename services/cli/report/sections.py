"""The sections of a report other than its course, maps and devices: head, summary, order, decision, answers, authenticity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from services.cli.report import formats
from services.cli.report.bases import basis_text
from services.cli.report.chronology import alert_text, named_fields
from services.cli.report.facts import DecidedAlert, LegStep, ReportFacts
from services.cli.report.words import Words
from services.common import times
from services.common.messaging import flow
from tandem.common.v1 import alert_pb2, exercise_pb2, geometry_pb2, log_pb2

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
        [words("bundle_made"), formats.date_time(manifest["made_at_ms"])],
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
    began, last = formats.date_time(facts.began_ms), formats.date_time(facts.last_ms)
    sentences = [
        words.text(
            f"사건은 {began}에 시작되어 {last}에 마지막 기록이 있습니다.",
            f"The incident began at {began}; its last record is of {last}.",
        ),
        _decision_sentence(facts, words),
        *_answer_sentences(facts, words),
        *_amendment_sentence(facts, words),
    ]
    nearest = [(_target(id_, facts, words), formats.metres(distance_m)) for id_, distance_m in _nearest(facts).items()]
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
    decided = formats.clock_time(decisive.decided_ms)
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


def _answer_sentence(offered: LegStep, steps: Sequence[LegStep], words: Words) -> str:
    """When an assignment was first offered, and when it was first acknowledged."""
    assignment_id = offered.body.get("assignment_id")
    accepted = next(
        (step for step in steps if step.kind == "Acknowledged" and step.body.get("assignment_id") == assignment_id),
        None,
    )
    at, subject = formats.clock_time(offered.at_ms), f"{offered.subject_id}, " if offered.subject_id else ""
    if accepted is None:
        return words.text(
            f"{words(offered.leg)}: {subject}{at} 출동 지령, 이 묶음에 접수 기록 없음.",
            f"{words(offered.leg).capitalize()}: {subject}offered at {at}, no acknowledgement in the bundle.",
        )
    took = words.duration(accepted.at_ms - offered.at_ms)
    return words.text(
        f"{words(offered.leg)}: {subject}{at} 출동 지령, {took} 뒤 접수.",
        f"{words(offered.leg).capitalize()}: {subject}offered at {at}, acknowledged {took} later.",
    )


def _amendment_sentence(facts: ReportFacts, words: Words) -> Iterator[str]:
    amendments = facts.amendments.values()
    if amendments:
        last = formats.date_time(max(fact.decided_ms for fact in amendments))
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
        f"{formats.metres(ring.radius_m)} ({words(geometry_pb2.Demand.Name(ring.action))})" for ring in case.rings
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
    return f"{formats.date_time(from_ms)} – {formats.date_time(until_ms) if has_end else words('no_end')}"


# ── decision ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def decisions(facts: ReportFacts, words: Words) -> list[dict[str, Any]]:
    """Each alert that demanded a notice or a response, and each account of a ring, in words with its numbers."""
    return [
        {
            "title": f"{formats.clock_time(fact.decided_ms)} {alert_text(fact, words)}",
            "rows": _grounds(fact, facts, words),
        }
        for fact in facts.alerts
        if fact.alert.demand >= geometry_pb2.NOTIFY or fact.alert.kind in _ACCOUNTS
    ]


_ACCOUNTS = (alert_pb2.RING_CLEARED, alert_pb2.ACCOUNT_AMENDED)
"""Kinds of alerts that have an account of the time inside a ring."""


def _grounds(fact: DecidedAlert, facts: ReportFacts, words: Words) -> Rows:
    alert, measure = fact.alert, fact.measure
    rows = [[words.text("경보 번호", "Alert"), alert.alert_id]]
    if (valid := facts.amended_by(fact)) is not None:
        when = f"{formats.date_time(valid.decided_ms)}, {valid.alert.alert_id}"
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
        rows.append([words.text("허가된 대면", "Authorised encounter"), alert.encounter_id])
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
            formats.percent(measure.probability)
            + words.text(" (양쪽 위치의 오차를 반영)", " (from the errors of both positions)"),
        ]
    if measure.HasField("distance_m") and with_distance:
        yield [words.text("거리", "Distance"), formats.metres(measure.distance_m)]
    if measure.HasField("min_distance_m"):
        assumed = words.text(" (가정한 값)", " (assumed)") if measure.min_distance_assumed else ""
        yield [words.text("가장 가까운 거리", "Least distance"), formats.metres(measure.min_distance_m) + assumed]
    for interval in measure.inside:
        from_ms, to_ms = times.from_timestamp(getattr(interval, "from")), times.from_timestamp(interval.to)
        yield [
            words.text("기준 안에 있던 시간", "Inside the ring"),
            f"{formats.clock_time(from_ms)} – {formats.clock_time(to_ms)} ({words.duration(to_ms - from_ms)})",
        ]


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_ANSWERS = ("Received", "Acknowledged", "Rejected", "Progressed", "Closed")


def answers(facts: ReportFacts, words: Words) -> Rows:
    """A row for each answer: leg, subject, answer, person, time, and time since the offer before it."""
    rows: Rows = []
    offered: dict[tuple[str, str], LegStep] = {}
    for step in facts.steps:
        key = step.leg, str(step.body.get("assignment_id", ""))
        if step.kind in ("Offered", "Reoffered", "Escalated"):
            offered[key] = step
        elif step.kind in _ANSWERS:
            since = offered.get(key)
            rows.append(
                [
                    words(step.leg),
                    step.subject_id or "-",
                    ", ".join([words.step_of(step.leg, step.kind), *named_fields(step, words)]),
                    step.by or "-",
                    formats.clock_time(step.at_ms),
                    "-" if since is None else words.duration(step.at_ms - since.at_ms),
                ]
            )
    return rows


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
