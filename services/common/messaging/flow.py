"""Where everything goes: the one table of streams and subjects, who publishes and who consumes them.

Streams are created from it, and every publisher and consumer takes its names from it. `{p}` is a partition of the log.

    registry ─ log.{p}.case ─┐
    ingest ─── log.{p}.report ─▶ LOG_{p} ─▶ geofence ─ alert.{p}.{alert_id} ─▶ ALERTS ─▶ dispatch (each leg)
    geofence ─ log.{p}.rules, .fold, .tick ┘                                             └─ incident.{leg}.{id} ─▶ INCIDENTS
    desks ─ ingest ─ command.{by}.{id} ─▶ COMMANDS ─▶ ingest ─▶ the device
"""

from __future__ import annotations

from dataclasses import dataclass

DAY_S = 86_400
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Stream:
    """A JetStream stream: on disk, limits retention, nothing can be deleted by hand; full means refusing new messages."""

    name: str
    """Name on the server, with {p} where there is one for each partition."""
    subjects: tuple[str, ...]
    """Subjects that it stores."""
    max_age_s: int
    """How long a message is kept, seconds; 0 for ever."""
    max_bytes: int
    """Size at which it refuses more."""
    forgets: bool = False
    """Full means that the oldest go, instead of refusing more: for what only informs."""

    def holds(self, subject: str) -> bool:
        """Whether a subject is one of its own. Whoever may read some stream can have its messages copied into another, where they
        stand under their old subject: only under its own is a message the word of who may publish it."""
        return any(subject.startswith(one.removesuffix(">")) for one in self.subjects)


@dataclass(frozen=True, slots=True)
class Flow:
    """One kind of message on its way."""

    subject: str
    """Subject, with its variable tokens in braces."""
    carries: str
    """Message type, in protos/tandem/common/v1 unless named in full."""
    stream: str
    """Stream that stores it."""
    publishers: tuple[str, ...]
    """Users of the server who may publish it; of a {leg} or a {by} only its own, so that a subject names its publisher."""
    readers: tuple[str, ...]
    """Users who may read it, by sequence unless `durable` says otherwise. Who may read a subject may read its whole stream."""
    durable: str = ""
    """Durable name under which its reader acknowledges what it has taken in."""


LOG_META = Stream("LOG_META", ("log_meta",), 0, 1 << 20)
# A position takes about 40 bytes: 2,700/s for 7 days are 65 GiB.
LOG = Stream("LOG_{p}", ("log.{p}.>",), 7 * DAY_S, 96 * GIB)
ALERTS = Stream("ALERTS", ("alert.>",), 30 * DAY_S, 8 * GIB)
MEASURES = Stream("MEASURES", ("measure.>",), 30 * DAY_S, 8 * GIB)
INCIDENTS = Stream("INCIDENTS", ("incident.>",), 30 * DAY_S, 8 * GIB)
# Apart from the steps, which probation reads too: when the race is being lost tells how far the wearer is from her.
ADVICE = Stream("ADVICE", ("advice.>",), 30 * DAY_S, GIB)
DEAD_LETTERS = Stream("DEAD_LETTERS", ("dead_letter.>",), 365 * DAY_S, GIB)
DIGESTS = Stream("DIGESTS", ("digest.>",), 7 * DAY_S, GIB)

# A command is over after a day at the latest.
COMMANDS = Stream("COMMANDS", ("command.>", "command_step.>"), DAY_S, GIB)
QUARANTINE = Stream("QUARANTINE", ("quarantine.>",), 7 * DAY_S, 16 << 20, forgets=True)

# A probe takes 4 KiB, so that a full disk shows at once; the newest 1 MiB of them is enough.
PROBE = Stream("PROBE", ("probe.>",), 600, 1 << 20, forgets=True)

LEDGER = Stream("LEDGER", ("ledger.>",), 3 * 365 * DAY_S, GIB)
DISCLOSURES = Stream("DISCLOSURES", ("disclosure.>",), 365 * DAY_S, 8 * GIB)

STREAMS = (
    LOG_META,
    LOG,
    ALERTS,
    MEASURES,
    INCIDENTS,
    ADVICE,
    DEAD_LETTERS,
    DIGESTS,
    COMMANDS,
    QUARANTINE,
    PROBE,
    LEDGER,
    DISCLOSURES,
)

DEVICES_BUCKET = "devices"
"""KV bucket: device id -> DeviceRoute, written by the registry, watched by ingest."""

LOG_META_SUBJECT = "log_meta"
"""Subject of the one message that says how many partitions there are and how the clock runs."""

LEGS = ("probation", "police", "warning")

DISCLOSURES_DURABLE = "registry-disclosures"
"""Durable name under which the registry takes disclosures that were made elsewhere into its ledger."""

_DISPATCH = tuple(f"dispatch-{leg}" for leg in LEGS)
_DESKS = ("dispatch-probation", "dispatch-police")
"""The legs that keep what their incidents rest on."""

COMMAND_USERS = ("operator", "explain", "evidence", "export")
"""Users of the commands that read streams, as which people connect."""

USERS = ("registry", "ingest", "geofence", *_DISPATCH, "setup", "watchdog", *COMMAND_USERS)
"""Users of the server: one for each service and leg, for who makes the streams, who watches the server, who is on call, and for
the commands that look into the log. Evaluators share one: they write the same."""

_LOG_READERS = ("geofence", "ingest", "registry", *_DISPATCH, "explain", "evidence")

FLOWS = (
    Flow("log_meta", "Premises", LOG_META.name, ("setup",), USERS),
    Flow("log.{p}.fold", "LogEntry.fold_version", LOG.name, ("geofence",), _LOG_READERS),
    Flow("log.{p}.report", "LogEntry.positions, .equipment, .heard", LOG.name, ("ingest",), _LOG_READERS),
    Flow("log.{p}.case", "LogEntry.case", LOG.name, ("registry",), _LOG_READERS),
    Flow("log.{p}.rules", "LogEntry.rules", LOG.name, ("geofence",), _LOG_READERS),
    Flow("log.{p}.tick", "LogEntry.tick", LOG.name, ("geofence",), _LOG_READERS),
    Flow(
        "alert.{p}.{alert_id}",
        "Alert",
        ALERTS.name,
        ("geofence",),
        ("geofence", "registry", *_DISPATCH, "explain", "evidence"),
    ),
    Flow(
        "measure.{p}.{alert_id}",
        "Measure",
        MEASURES.name,
        ("geofence",),
        # Not probation's leg: three distances and the wearer's track would give her address.
        ("geofence", "dispatch-police", "dispatch-warning", "explain", "evidence"),
    ),
    Flow(
        "incident.{leg}.{incident_id}",
        "tandem.dispatch.v1.Step",
        INCIDENTS.name,
        _DISPATCH,
        ("registry", *_DISPATCH, "export"),
    ),
    Flow(
        "advice.{incident_id}",
        "tandem.dispatch.v1.AdviceGiven",
        ADVICE.name,
        ("dispatch-police",),
        # The police's leg looks whether the stream still has what it wrote there.
        ("dispatch-police", "dispatch-warning"),
    ),
    Flow(
        "dead_letter.{by}.{reader}.{stream}.{sequence}",
        "Parked",
        DEAD_LETTERS.name,
        ("geofence", *_DISPATCH, "registry"),
        (*_DESKS, "evidence", "operator"),
    ),
    Flow(
        "digest.{p}.{sequence}.{stamp}.{replica}",
        "HMAC-SHA256 hex with the id of its key",
        DIGESTS.name,
        ("geofence",),
        ("geofence",),
    ),
    Flow(
        "command.{by}.{command_id}",
        "Command",
        COMMANDS.name,
        ("ingest", "dispatch-warning"),
        ("ingest", "dispatch-warning"),
    ),
    Flow(
        "command_step.{command_id}.{state}", "CommandStep", COMMANDS.name, ("ingest",), ("ingest", "dispatch-warning")
    ),
    Flow("quarantine.{ingest}", "tandem.ingest.v1.QuarantineCounts", QUARANTINE.name, ("ingest",), ("ingest",)),
    Flow("probe.{host}", "zeros", PROBE.name, ("watchdog",), ()),
    # The registry looks whether the stream still has the heads that it wrote there; the same of the routes.
    Flow("ledger.head.{sequence}", "LedgerHead", LEDGER.name, ("registry",), ("operator", "registry")),
    Flow(
        "disclosure.{by}.{disclosure_id}",
        "Disclosure",
        DISCLOSURES.name,
        ("geofence", *_DESKS, "explain", "evidence"),
        ("registry",),
        DISCLOSURES_DURABLE,
    ),
)

ROUTES = Flow(
    f"$KV.{DEVICES_BUCKET}.{{device_id}}", "DeviceRoute", f"KV_{DEVICES_BUCKET}", ("registry",), ("ingest", "registry")
)
"""The KV bucket as the stream that it is."""


def log_stream(partition: int) -> str:
    """Name of the log of a partition."""
    return LOG.name.format(p=partition)


def log_subject(partition: int, kind: str) -> str:
    """Subject of an entry; `kind` is fold, report, case, rules or tick."""
    return f"log.{partition}.{kind}"


def alert_subject(partition: int, alert_id: str) -> str:
    """Subject of one alert; it is its own, so that the second publish can be refused for ever."""
    return f"alert.{partition}.{alert_id}"


def measure_subject(partition: int, alert_id: str) -> str:
    """Subject of the figures of one alert."""
    return f"measure.{partition}.{alert_id}"


def incident_subject(leg: str, incident_id: str) -> str:
    """Subject of the steps of one leg of an incident."""
    return f"incident.{leg}.{incident_id}"


def advice_subject(incident_id: str) -> str:
    """Subject of what the police's leg has the warning leg tell those whom an order protects."""
    return f"advice.{incident_id}"


def peer_subjects(leg: str) -> tuple[str, ...]:
    """Subjects of the other legs' steps."""
    return tuple(f"incident.{other}.>" for other in LEGS if other != leg)


def leg_user(leg: str) -> str:
    """User of the server that a leg is."""
    return f"dispatch-{leg}"


def alerts_reader(leg: str) -> str:
    """Name of a leg as a reader of ALERTS; how far it is stands in its own database."""
    return f"{leg}-alerts"


def peers_reader(leg: str) -> str:
    """Name of a leg as a reader of the other legs' steps."""
    return f"{leg}-peers"


def steps_reader(leg: str) -> str:
    """Name of a leg as a reader of its own steps, when it compares them with its record."""
    return f"{leg}-steps"


def warning_reader(stream: str) -> str:
    """Name of the warning leg as a reader of a stream for its messages to protected persons."""
    return f"warning-{stream.lower()}"


FOLD_READER = "fold"
"""Name of an evaluator as a reader of the log."""

PARKING_USERS = {
    FOLD_READER: "geofence",
    DISCLOSURES_DURABLE: "registry",
    **{reader(leg): leg_user(leg) for leg in LEGS for reader in (alerts_reader, peers_reader, steps_reader)},
    **{warning_reader(stream.name): leg_user("warning") for stream in (ADVICE, COMMANDS)},
}
"""User of the server by the reader that sets messages aside: the user alone may publish under its name."""


def dead_letter_subject(reader: str, stream: str, sequence: int) -> str:
    """Subject of one message that a reader sets aside. Raises KeyError for a reader that isn't in PARKING_USERS."""
    return f"dead_letter.{PARKING_USERS[reader]}.{reader}.{stream}.{sequence}"


def digest_subject(partition: int, sequence: int, stored_at_ns: int, replica: int) -> str:
    """Subject of the digest of one evaluator's state after the entry that has this sequence and this stamp of its stream."""
    return f"digest.{partition}.{sequence}.{stored_at_ns}.{replica}"


NOTICE_IDS = "notice-"
"""How the ids of the warning leg's commands begin. No desk may give such an id, so no command takes another's."""


def command_subject(by: str, command_id: str) -> str:
    """Subject of one command by a user of the server; it is its own, so that the second with the same id is refused for ever."""
    return f"command.{by}.{command_id}"


def command_step_subject(command_id: str, state: str) -> str:
    """Subject of a command's coming to a state; of each the first is kept."""
    return f"command_step.{command_id}.{state}"


def quarantine_subject(ingest: str) -> str:
    """Subject of the counts of reports that one ingest process refused."""
    return f"quarantine.{ingest}"


def probe_subject(host: str) -> str:
    """Subject under which the watchdog of a host tries whether anything is stored."""
    return f"probe.{host}"


def ledger_head_subject(sequence: int) -> str:
    """Subject of one signed head of the ledger."""
    return f"ledger.head.{sequence}"


def disclosure_subject(by: str, disclosure_id: str) -> str:
    """Subject of one disclosure that a user of the server made elsewhere than in the registry."""
    return f"disclosure.{by}.{disclosure_id}"
