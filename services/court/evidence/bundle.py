"""Make and verify the evidence bundle of an incident: one tar file, with the same bytes for the same contents.

Its proof folds the enclosed log entries from an empty state, and compares the result with the stored alerts. It uses raw entries only,
and nothing that an evaluator derived. Cases and rules older than the window are folded at the start of the window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.common.errors import InvalidField, OutdatedFold
from services.common.evidence.model import MARK_SUBJECT, Evidence, StoredMessage
from services.common.messaging import flow
from services.common.messaging.streams import LogMetadata
from services.court.evidence import archive, leg_records
from services.court.evidence.archive import (
    CHAINS,
    MAX_BUNDLE_BYTES,
    NAMES,
    REPLAY,
    STREAMED,
    CorruptArchive,
    canonical_json,
    check_members,
)
from services.court.evidence.archive import README as README_NAME
from services.court.evidence.leg_records import Chain, Shown
from services.geofence import translate
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert
from services.geofence.domain.entries import FOLD_VERSION, Entry, Tick
from services.geofence.domain.state import State
from tandem.common.v1 import alert_pb2, log_pb2

FORMAT = 1
README = """Evidence of one incident, made by Tandem.

manifest.json   description of the bundle, and the SHA-256 of every other member and of each of its kibibytes
signature.json  Ed25519 signature of the manifest. The public key in it proves the signer only if you know that key from elsewhere
log.jsonl       entries of the ordered log as they were stored (data is base64), with sequence and stamp of the stream's leader.
                cut: data about others was removed. subject mark: everything was removed; the stamp alone makes time pass.
                premise: the entry is older than the window, and is folded at the start of the window.
alerts.jsonl, measures.jsonl, dead_letters.jsonl   the stored outputs of these entries, in the same form
chain-LEG.jsonl the leg's own record from the incident's first event to its last; only hashes of other incidents' events
replay.json     whether refolding log.jsonl gives the stored alerts and figures, byte for byte

Verify the bundle without any server or network: tandem evidence verify FILE --public-key CUSTODIAN.pub
"""


@dataclass(frozen=True, slots=True)
class Verified:
    """A verified bundle."""

    manifest: Mapping[str, Any]
    public_key: bytes
    """Public key of the signature."""
    replay: Replay | None
    """Result of the refold; None for probation's bundle, which lacks the protected persons' positions and can't be refolded."""
    events: Sequence[Shown]
    """Verified events of all enclosed chains."""
    records: Sequence[StoredMessage]
    """Verified records of the streams: log entries, alerts, figures and dead letters."""

    @property
    def differences(self) -> list[str]:
        """Differences between the refold and the stored alerts; empty if there are none."""
        return self.replay.differences if self.replay else []


def ground_of(evidence: Evidence, log_meta: LogMetadata) -> Ground:
    """The starting point for refolding collected evidence."""
    return Ground(
        incident_id=evidence.incident_id,
        partition=evidence.partition,
        log_id=log_meta.log_id,
        clock_rate=log_meta.clock.rate,
        clock_anchor_ms=log_meta.clock.anchor_ms,
        window_stamp_ms=evidence.window_stamp_ms,
    )


def make_bundle(
    evidence: Evidence, ground: Ground, chains: Sequence[Chain], *, about: Mapping[str, Any], key: Ed25519PrivateKey
) -> bytes:
    """The bytes of a bundle. `about` holds the manifest's fields on time, reason and software."""
    members = {name: _lines(evidence.of(stream_of(evidence.partition))) for name, stream_of in STREAMED.items()}
    members[README_NAME] = README.encode()
    for chain in chains:
        members[f"chain-{chain.leg}.jsonl"] = chain.to_member(
            evidence.incident_id, others=evidence.leg not in ("police", chain.leg)
        )
    if evidence.leg == "police":
        members[REPLAY] = canonical_json(replay(ground, evidence.records).to_json())
    fields = {
        "format": FORMAT,
        "incident_id": evidence.incident_id,
        "for": evidence.leg,
        "wearer_id": evidence.wearer_id,
        "order_ids": list(evidence.order_ids),
        "ended": evidence.ended,
        "whole": evidence.whole,
        "chains": {chain.leg: {"head": [chain.head.id, chain.head.hash]} for chain in chains},
        "chains_missing": sorted(set(flow.LEGS) - {chain.leg for chain in chains}),
        "fold_version": FOLD_VERSION,
        "log": {
            "log_id": ground.log_id,
            "partition": ground.partition,
            "window_stamp_ms": ground.window_stamp_ms,
        },
        "clock": {
            "rate": ground.clock_rate,
            "anchor_ms": ground.clock_anchor_ms,
            "stamp_after_receipt_ms": _stamp_after_receipt_ms(evidence.of(flow.log_stream(evidence.partition))),
        },
        **about,
    }
    return archive.write_tar(archive.seal_members(members, fields, key))


def verify_bundle(data: bytes, public_key: bytes | None) -> Verified:
    """Verifies a bundle: its bytes, its signature, the legs' chains, and the decision by a refold.

    Raises CorruptArchive at the first difference from the bundle as it was made. A refold that differs from the mesh's decision raises
    nothing: the difference is part of the result, as the bundle may be evidence of that very difference.
    """
    if len(data) > MAX_BUNDLE_BYTES:
        raise CorruptArchive("the file", None, f"has more than {MAX_BUNDLE_BYTES} bytes")
    members = archive.read_tar(data, NAMES)
    manifest, signed_by = archive.unseal_members(members, public_key)
    check_members(list(members), manifest)
    events = _events(members, manifest)
    log, clock = manifest["log"], manifest["clock"]
    records = archive.records_of(members, log["partition"])
    if manifest["for"] != "police":
        return Verified(manifest=manifest, public_key=signed_by, replay=None, events=events, records=records)
    _check_that_alerts_are_enclosed(records, events)
    ground = Ground(
        incident_id=manifest["incident_id"],
        partition=log["partition"],
        log_id=log["log_id"],
        clock_rate=clock["rate"],
        clock_anchor_ms=clock["anchor_ms"],
        window_stamp_ms=log["window_stamp_ms"],
    )
    replayed = _folded(ground, records)
    if manifest["fold_version"] != FOLD_VERSION:
        versions = f"it was folded by version {manifest['fold_version']}, this is {FOLD_VERSION}"
        replayed = replace(replayed, results={**replayed.results, "fold": versions})
    elif members[REPLAY] != canonical_json(replayed.to_json()):
        raise CorruptArchive(REPLAY, None, "isn't what the fold gives")
    return Verified(manifest=manifest, public_key=signed_by, replay=replayed, events=events, records=records)


def _events(members: Mapping[str, bytes], manifest: Mapping[str, Any]) -> list[Shown]:
    """The events of all chains. Checks that they belong to this incident and end at the manifest's heads."""
    shown: list[Shown] = []
    for name in sorted(members.keys() & CHAINS.keys()):
        events = leg_records.verified_events(name, members[name], manifest["chains"][CHAINS[name]]["head"])
        for event in events:
            if event.incident_id != manifest["incident_id"]:
                raise CorruptArchive(name, None, f"event {event.id} is of another incident")
        shown += events
    return shown


def _folded(ground: Ground, records: Sequence[StoredMessage]) -> Replay:
    try:
        return replay(ground, records)
    except Exception as error:
        # Forged entries may fail anywhere in the fold. Entries that can't be folded prove nothing.
        raise CorruptArchive("log.jsonl", None, f"can't be folded: {type(error).__name__}") from None


def _check_that_alerts_are_enclosed(records: Sequence[StoredMessage], events: Sequence[Shown]) -> None:
    alert_ids = [
        alert_pb2.Alert.FromString(record.data).alert_id for record in records if record.stream == flow.ALERTS.name
    ]
    enclosed = set(alert_ids)
    if len(enclosed) < len(alert_ids):
        raise CorruptArchive("alerts.jsonl", None, "holds an alert twice")
    for event in events:
        if event.alert_id and event.alert_id not in enclosed:
            name = f"chain-{event.leg}.jsonl"
            raise CorruptArchive(name, None, f"event {event.id} accepted an alert that isn't enclosed")


def _lines(records: Sequence[StoredMessage]) -> bytes:
    return b"".join(record.to_line() for record in records)


def _stamp_after_receipt_ms(log: Sequence[StoredMessage]) -> list[int]:
    """Minimum and maximum time, ms, from ingest's receipt to the log leader's stamp. The two clocks confirm each other."""
    delays_ms = []
    for record in log:
        entry = log_pb2.LogEntry.FromString(record.data)
        body = getattr(entry, entry.WhichOneof("body") or "tick")
        received_us = getattr(body, "received_wall_us", 0)
        if received_us:
            delays_ms.append(record.stamp_ms - received_us // 1000)
    return [min(delays_ms), max(delays_ms)] if delays_ms else []


SAME = "SAME"


@dataclass(frozen=True, slots=True)
class Ground:
    """Starting point of a refold: log, clock and window."""

    incident_id: str
    partition: int
    log_id: str
    clock_rate: int
    clock_anchor_ms: int
    window_stamp_ms: int


@dataclass(frozen=True, slots=True)
class Replay:
    """Result of a refold."""

    entries: int
    results: Mapping[str, str]
    """SAME or the difference, by alert id of the incident."""

    @property
    def differences(self) -> list[str]:
        """Differences between the refold and the stored alerts; empty if all are the same, byte for byte."""
        return [f"{alert_id}: {found}" for alert_id, found in self.results.items() if found != SAME]

    def to_json(self) -> dict[str, Any]:
        """The JSON object that a bundle encloses."""
        return {"fold_version": FOLD_VERSION, "entries": self.entries, "again": dict(self.results)}


def replay(ground: Ground, records: Sequence[StoredMessage]) -> Replay:
    """Folds the log entries among the records, and compares the result with the alerts and figures among them."""
    log = [record for record in records if record.stream == flow.log_stream(ground.partition)]
    state = State(
        ground.partition,
        log_id=ground.log_id,
        clock_rate=ground.clock_rate,
        clock_anchor_ms=ground.clock_anchor_ms,
    )
    refolded: dict[str, Alert] = {}
    try:
        for record in log:
            for output in _step(state, ground, record):
                if isinstance(output, Alert):
                    refolded[output.alert_id] = output
    except OutdatedFold as error:
        return Replay(len(log), {"all": error.reason})
    whole = {record.sequence for record in log if not record.cut}
    alerts = [record for record in records if record.stream == flow.ALERTS.name]
    figures = {
        record.subject.rpartition(".")[2]: record.data for record in records if record.stream == flow.MEASURES.name
    }
    results: dict[str, str] = {}
    for record in alerts:
        stored = alert_pb2.Alert.FromString(record.data)
        alert = refolded.pop(stored.alert_id, None)
        results[stored.alert_id] = _compared(
            ground, record, stored, refolded=alert, whole=stored.sequence in whole, figures=figures
        )
    last = max((alert_pb2.Alert.FromString(record.data).sequence for record in alerts), default=0)
    for extra in refolded.values():
        if extra.incident_id == ground.incident_id and extra.sequence <= last:
            results[extra.alert_id] = "the fold gives it, and it isn't stored"
    return Replay(len(log), results)


def _step(state: State, ground: Ground, record: StoredMessage) -> Sequence[object]:
    stamp_ms = ground.window_stamp_ms if record.premise else record.stamp_ms
    if record.subject == MARK_SUBJECT:
        return fold.step(state, Entry(record.sequence, stamp_ms, Tick()))
    try:
        body = translate.stored_body(record.subject, record.data)
    except InvalidField:
        return ()  # every reader of the log skips an unreadable entry
    return fold.step(state, Entry(record.sequence, stamp_ms, body))


def _compared(
    ground: Ground,
    record: StoredMessage,
    stored: alert_pb2.Alert,
    *,
    refolded: Alert | None,
    whole: bool,
    figures: Mapping[str, bytes],
) -> str:
    if refolded is None:
        return "the fold doesn't give it"
    message = translate.alert_to_proto(refolded, ground.partition)
    if not whole:
        # The stored ordinal counts alerts of other persons too, whose data was cut from the entry.
        message.ordinal = stored.ordinal
    if message.SerializeToString() != record.data:
        names = [
            field.name
            for field in message.DESCRIPTOR.fields
            if getattr(message, field.name) != getattr(stored, field.name)
        ]
        return f"the fold gives other bytes: {', '.join(names) or 'unknown fields'}"
    if figures.get(stored.alert_id) != translate.measure_to_proto(refolded).SerializeToString():
        return "the fold gives other figures" if stored.alert_id in figures else "its figures aren't enclosed"
    return SAME
