"""The flow table: every stream and subject, with its publishers and readers.

Streams are created from this table, and every publisher and reader uses its names. `{p}` is a partition of the log.

    registry ─ log.{p}.case ─┐
    ingest ─── log.{p}.report ─▶ LOG_{p} ─▶ geofence ─ alert.{p}.{alert_id} ─▶ ALERTS ─▶ dispatch (each leg)
    geofence ─ log.{p}.rules, .fold, .tick ┘                                             └─ incident.{leg}.{id} ─▶ INCIDENTS
    geofence ─ sensing.{p}.{request_id} ─▶ SENSING ─▶ ingest (also messages to wearers)
    desks ─ ingest ─ command.{by}.{id} ─▶ COMMANDS ─▶ ingest ─▶ the device
"""

from __future__ import annotations

from dataclasses import dataclass

DAY_S = 86_400
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Stream:
    """A JetStream stream: on disk, with limits retention, and no deletion by hand. A full stream rejects new messages."""

    name: str
    """Name on the server. Contains {p} if each partition has a stream of this kind."""
    subjects: tuple[str, ...]
    """Subjects that the stream stores."""
    max_age_s: int
    """Maximum age of a message, seconds. If 0, messages are kept forever."""
    max_bytes: int
    """Maximum size of the stream, bytes."""
    discards_oldest: bool = False
    """Whether a full stream discards its oldest messages instead of rejecting new ones. Only for informational messages."""

    def holds(self, subject: str) -> bool:
        """Whether a subject belongs to this stream, so that only its permitted publishers can have published it.

        A user that may read a stream can have the messages of that stream copied into another one, where they keep their old subjects.
        So a reader must not trust a message with a subject of another stream.
        """
        return any(subject.startswith(own.removesuffix(">")) for own in self.subjects)


@dataclass(frozen=True, slots=True)
class Flow:
    """A row of the flow table: one kind of message, with its subject, stream, publishers and readers."""

    subject: str
    """Subject, with its variable tokens in braces."""
    message_type: str
    """Message type, in protos/tandem/common/v1 unless named in full."""
    stream: str
    """Name of the stream that stores the message."""
    publishers: tuple[str, ...]
    """Users of the server that may publish the message. If the subject contains {leg} or {by}, a user may publish only with
    its own token there, so that the subject names the publisher."""
    readers: tuple[str, ...]
    """Users that may read the message, by sequence unless `durable` is set. A user that may read one subject may read the whole
    stream."""
    durable: str = ""
    """Durable consumer under which the reader acknowledges processed messages. Empty if there is none."""


LOG_META = Stream(name="LOG_META", subjects=("log_meta",), max_age_s=0, max_bytes=1 << 20)
# Sized for positions of about 40 bytes: 2,700/s for 7 days are 65 GiB.
LOG = Stream(name="LOG_{p}", subjects=("log.{p}.>",), max_age_s=7 * DAY_S, max_bytes=96 * GIB)
ALERTS = Stream(name="ALERTS", subjects=("alert.>",), max_age_s=30 * DAY_S, max_bytes=8 * GIB)
MEASURES = Stream(name="MEASURES", subjects=("measure.>",), max_age_s=30 * DAY_S, max_bytes=8 * GIB)
INCIDENTS = Stream(name="INCIDENTS", subjects=("incident.>",), max_age_s=30 * DAY_S, max_bytes=8 * GIB)
# Advice has a stream of its own, because probation reads INCIDENTS: the time at which a race is lost reveals how far the wearer is
# from the victim.
ADVICE = Stream(name="ADVICE", subjects=("advice.>",), max_age_s=30 * DAY_S, max_bytes=GIB)
DEAD_LETTERS = Stream(name="DEAD_LETTERS", subjects=("dead_letter.>",), max_age_s=365 * DAY_S, max_bytes=GIB)
DIGESTS = Stream(name="DIGESTS", subjects=("digest.>",), max_age_s=7 * DAY_S, max_bytes=GIB)

# A need ends after an hour at the latest unless it is renewed. Positions aren't in this stream, but a short interval says that a wearer
# is near somebody.
SENSING = Stream(name="SENSING", subjects=("sensing.>",), max_age_s=DAY_S, max_bytes=GIB)
# A command expires after a day at the latest.
COMMANDS = Stream(name="COMMANDS", subjects=("command.>", "command_step.>"), max_age_s=DAY_S, max_bytes=GIB)
# Times of fixes, without positions. After half an hour they have no use.
OBSERVED = Stream(name="OBSERVED", subjects=("observed.>",), max_age_s=1_800, max_bytes=64 << 20, discards_oldest=True)
QUARANTINE = Stream(
    name="QUARANTINE", subjects=("quarantine.>",), max_age_s=7 * DAY_S, max_bytes=16 << 20, discards_oldest=True
)

# A probe has 4 KiB, so that it fails at once on a full disk. Older probes have no use, so 1 MiB is enough.
PROBE = Stream(name="PROBE", subjects=("probe.>",), max_age_s=600, max_bytes=1 << 20, discards_oldest=True)

LEDGER = Stream(name="LEDGER", subjects=("ledger.>",), max_age_s=3 * 365 * DAY_S, max_bytes=GIB)
DISCLOSURES = Stream(name="DISCLOSURES", subjects=("disclosure.>",), max_age_s=365 * DAY_S, max_bytes=8 * GIB)

STREAMS = (
    LOG_META,
    LOG,
    ALERTS,
    MEASURES,
    INCIDENTS,
    ADVICE,
    DEAD_LETTERS,
    DIGESTS,
    SENSING,
    COMMANDS,
    OBSERVED,
    QUARANTINE,
    PROBE,
    LEDGER,
    DISCLOSURES,
)

DEVICES_BUCKET = "devices"
"""KV bucket of device routes: device id -> DeviceRoute. The registry writes it, ingest watches it."""

LOG_META_SUBJECT = "log_meta"
"""Subject of the single message with the log's metadata: number of partitions and clock."""

LEGS = ("probation", "police", "warning")
"""Legs of dispatch: two desks and the warnings to protected persons."""
AGENCY_LEGS = LEGS[:2]
"""Legs of the agencies, whose desks send units. The warning leg has no desk and sends nobody."""

DISCLOSURES_DURABLE = "registry-disclosures"
"""Durable consumer of the registry, which adds the disclosures of other services to its ledger."""

_DISPATCH = tuple(f"dispatch-{leg}" for leg in LEGS)
_DESKS = ("dispatch-probation", "dispatch-police")
"""Users of the two legs that have a desk. They keep the evidence of their incidents."""

COMMAND_USERS = ("operator", "explain", "evidence", "export")
"""Users of the server for people at the command line: one for operators and one for each command that reads streams."""

USERS = ("registry", "ingest", "geofence", *_DISPATCH, "setup", "watchdog", *COMMAND_USERS)
"""All users of the server: services, legs, stream setup, watchdog and command line. All evaluators share the user
geofence, because they publish the same messages."""

_LOG_READERS = ("geofence", "ingest", "registry", *_DISPATCH, "explain", "evidence")


def _log_row(kind: str, content: str, publisher: str) -> Flow:
    """Row of a kind of log entries, which all readers of the log may read."""
    return Flow(
        subject=f"log.{{p}}.{kind}",
        message_type=f"LogEntry.{content}",
        stream=LOG.name,
        publishers=(publisher,),
        readers=_LOG_READERS,
    )


FLOWS = (
    Flow(subject="log_meta", message_type="LogMetadata", stream=LOG_META.name, publishers=("setup",), readers=USERS),
    _log_row("fold", "fold_version", "geofence"),
    _log_row("report", "positions, .equipment, .heard, .presences", "ingest"),
    _log_row("case", "case", "registry"),
    _log_row("rules", "rules", "geofence"),
    _log_row("tick", "tick", "geofence"),
    Flow(
        subject="alert.{p}.{alert_id}",
        message_type="Alert",
        stream=ALERTS.name,
        publishers=("geofence",),
        readers=("geofence", "registry", *_DISPATCH, "explain", "evidence"),
    ),
    Flow(
        subject="measure.{p}.{alert_id}",
        message_type="Measure",
        stream=MEASURES.name,
        publishers=("geofence",),
        # Probation's leg may not read measures: three distances and the wearer's track would reveal the victim's address.
        readers=("geofence", "dispatch-police", "dispatch-warning", "explain", "evidence"),
    ),
    Flow(
        subject="incident.{leg}.{incident_id}",
        message_type="tandem.dispatch.v1.Step",
        stream=INCIDENTS.name,
        publishers=_DISPATCH,
        readers=("registry", *_DISPATCH, "export"),
    ),
    Flow(
        subject="advice.{incident_id}",
        message_type="tandem.dispatch.v1.AdviceGiven",
        stream=ADVICE.name,
        publishers=("dispatch-police",),
        # The police's leg checks that the stream still holds its messages.
        readers=("dispatch-police", "dispatch-warning"),
    ),
    Flow(
        subject="dead_letter.{by}.{reader}.{stream}.{sequence}",
        message_type="DeadLetter",
        stream=DEAD_LETTERS.name,
        publishers=("geofence", "ingest", *_DISPATCH, "registry"),
        readers=(*_DESKS, "evidence", "operator"),
    ),
    Flow(
        subject="digest.{p}.{sequence}.{stamp}.{replica}",
        message_type="HMAC-SHA256 hex with the id of its key",
        stream=DIGESTS.name,
        publishers=("geofence",),
        readers=("geofence",),
    ),
    Flow(
        subject="sensing.{p}.{request_id}",
        message_type="SensingRequest",
        stream=SENSING.name,
        publishers=("geofence",),
        readers=("ingest", "explain"),
    ),
    Flow(
        subject="command.{by}.{command_id}",
        message_type="Command",
        stream=COMMANDS.name,
        publishers=("ingest", "dispatch-warning"),
        readers=("ingest", "dispatch-warning"),
    ),
    Flow(
        subject="command_step.{command_id}.{state}",
        message_type="CommandStep",
        stream=COMMANDS.name,
        publishers=("ingest",),
        readers=("ingest", "dispatch-warning"),
    ),
    Flow(
        subject="observed.{ingest}",
        message_type="tandem.ingest.v1.ObservedFixes",
        stream=OBSERVED.name,
        publishers=("ingest",),
        readers=("ingest",),
    ),
    Flow(
        subject="quarantine.{ingest}",
        message_type="tandem.ingest.v1.QuarantineCounts",
        stream=QUARANTINE.name,
        publishers=("ingest",),
        readers=("ingest",),
    ),
    Flow(subject="probe.{host}", message_type="zeros", stream=PROBE.name, publishers=("watchdog",), readers=()),
    # The registry checks that the streams still hold its ledger heads and its routes.
    Flow(
        subject="ledger.head.{sequence}",
        message_type="LedgerHead",
        stream=LEDGER.name,
        publishers=("registry",),
        readers=("operator", "registry"),
    ),
    Flow(
        subject="disclosure.{by}.{disclosure_id}",
        message_type="Disclosure",
        stream=DISCLOSURES.name,
        publishers=("geofence", *_DISPATCH, "explain", "evidence"),
        readers=("registry",),
        durable=DISCLOSURES_DURABLE,
    ),
)

ROUTES = Flow(
    subject=f"$KV.{DEVICES_BUCKET}.{{device_id}}",
    message_type="DeviceRoute",
    stream=f"KV_{DEVICES_BUCKET}",
    publishers=("registry",),
    readers=("ingest", "registry"),
)
"""Row for the KV bucket of device routes, which is a stream on the server. It isn't in FLOWS, because its stream isn't in STREAMS."""


def log_stream(partition: int) -> str:
    """Name of the stream that holds a partition of the log."""
    return LOG.name.format(p=partition)


def log_subject(partition: int, kind: str) -> str:
    """Subject of an entry of the log. `kind` is fold, report, case, rules or tick."""
    return f"log.{partition}.{kind}"


def alert_subject(partition: int, alert_id: str) -> str:
    """Subject of an alert. Each alert has its own subject, so that the server can reject a second publish at any later time."""
    return f"alert.{partition}.{alert_id}"


def measure_subject(partition: int, alert_id: str) -> str:
    """Subject of an alert's measure, the figures on which the alert rests."""
    return f"measure.{partition}.{alert_id}"


def sensing_subject(partition: int, request_id: str) -> str:
    """Subject of a request for data of a device. Each request has its own subject, as each alert has."""
    return f"sensing.{partition}.{request_id}"


def incident_subject(leg: str, incident_id: str) -> str:
    """Subject of the steps of one leg in an incident."""
    return f"incident.{leg}.{incident_id}"


def advice_subject(incident_id: str) -> str:
    """Subject of advice from the police's leg, which the warning leg sends to the persons whom an order protects."""
    return f"advice.{incident_id}"


def peer_subjects(leg: str) -> tuple[str, ...]:
    """Subjects of the steps of all legs but one."""
    return tuple(f"incident.{other}.>" for other in LEGS if other != leg)


def leg_user(leg: str) -> str:
    """User of the server for a leg of dispatch."""
    return f"dispatch-{leg}"


def alerts_reader(leg: str) -> str:
    """Reader name of a leg on ALERTS. The leg keeps this reader's position in its database."""
    return f"{leg}-alerts"


def peers_reader(leg: str) -> str:
    """Reader name of a leg on the other legs' steps."""
    return f"{leg}-peers"


def steps_reader(leg: str) -> str:
    """Reader name of a leg on its own steps, which it compares with its database."""
    return f"{leg}-steps"


def warning_reader(stream: str) -> str:
    """Reader name of the warning leg on a stream from which it makes messages to protected persons."""
    return f"warning-{stream.lower()}"


FOLD_READER = "fold"
"""Reader name of an evaluator on the log."""

SENSING_READER = "ingest-sensing"
"""Reader name of ingest on SENSING."""

DEAD_LETTER_USERS = {
    FOLD_READER: "geofence",
    SENSING_READER: "ingest",
    DISCLOSURES_DURABLE: "registry",
    **{reader(leg): leg_user(leg) for leg in LEGS for reader in (alerts_reader, peers_reader, steps_reader)},
    **{warning_reader(stream.name): leg_user("warning") for stream in (ADVICE, COMMANDS)},
}
"""User of the server for each reader that stores dead letters. Only this user may publish under the reader's name."""


def dead_letter_subject(reader: str, stream: str, sequence: int) -> str:
    """Subject of the dead letter for a message that a reader can't use. Raises KeyError for a reader not in DEAD_LETTER_USERS."""
    return f"dead_letter.{DEAD_LETTER_USERS[reader]}.{reader}.{stream}.{sequence}"


def digest_subject(partition: int, sequence: int, stored_at_ns: int, *, replica: int) -> str:
    """Subject of a digest of one evaluator's state after the log entry with this sequence and storage time."""
    return f"digest.{partition}.{sequence}.{stored_at_ns}.{replica}"


NOTICE_IDS = "notice-"
"""Prefix of the ids of the warning leg's commands. Desks may not use it, so ids of the two never collide."""


CONTACT_IDS = "contact-"
"""Prefix of the ids of first contacts: of the decision's messages to wearers, and of their commands. Desks may not use it."""


def command_subject(by: str, command_id: str) -> str:
    """Subject of a command by a user of the server. Each command has its own subject, so that the server can reject a second one
    with the same id at any later time."""
    return f"command.{by}.{command_id}"


def command_step_subject(command_id: str, state: str) -> str:
    """Subject of the step with which a command reaches a state. Only the first step per command and state is stored."""
    return f"command_step.{command_id}.{state}"


def observed_subject(ingest: str) -> str:
    """Subject of the times of fixes that one ingest process accepted."""
    return f"observed.{ingest}"


def quarantine_subject(ingest: str) -> str:
    """Subject of the counts of reports that an ingest process has rejected."""
    return f"quarantine.{ingest}"


def probe_subject(host: str) -> str:
    """Subject on which the watchdog of a host tests whether the server stores messages."""
    return f"probe.{host}"


def ledger_head_subject(sequence: int) -> str:
    """Subject of a signed head of the ledger."""
    return f"ledger.head.{sequence}"


def disclosure_subject(by: str, disclosure_id: str) -> str:
    """Subject of a disclosure that a user of the server made outside the registry."""
    return f"disclosure.{by}.{disclosure_id}"
