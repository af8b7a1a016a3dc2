"""What each user of the NATS server may do: generated from the flow table, so that the table is what the server enforces. Pure.

A user publishes the subjects that the table gives it, reads the streams that the table gives it, and has its answers come to an inbox
in an account of its own. Nobody may delete or purge anything but its own readers.

A stream takes a limited number of consumers (1,000 by default), of all users together. So each user may create consumers under a fixed
list of names of its own: however many it asks for, the other users' readers keep their places.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.common.messaging import flow

HOME = "tandem"
"""The account that has the streams."""
_API = "$JS.API"
_CONSUMER = f"{_API}.CONSUMER"
_PULL = f"{_CONSUMER}.MSG.NEXT."
"""What is asked for here comes in many answers."""
READERS = 16
"""Consumers that a service may have on one stream: its processes together, with what the server keeps of dead ones for 10 s."""
COMMAND_READERS = 8
"""Consumers that a user of the command line may have on one stream."""
ALERT_READERS = 128
"""Consumers that the evaluators may have on ALERTS, which they read once more for each caller of WatchAlerts."""
SERVICE = "spiffe://tandem/service/"
"""Prefix of the SPIFFE ids of Tandem's own processes; the user's name follows."""


@dataclass(frozen=True, slots=True)
class NatsUser:
    """A user of the server."""

    name: str
    """As in flow.USERS."""
    publish: tuple[str, ...]
    """Subjects that it may publish to; requests to JetStream are such, too."""
    subscribe: tuple[str, ...]
    """Subjects that it may listen on: its inbox."""


def inbox(user: str) -> str:
    """Prefix of a user's inboxes."""
    return f"_INBOX.{user}"


def reader_names(user: str, stream: str) -> tuple[str, ...]:
    """Names that a user's readers of a stream may have; a user that the flow table doesn't list gets as many as a service."""
    if (user, stream) == ("geofence", flow.ALERTS.name):
        count = ALERT_READERS
    else:
        count = COMMAND_READERS if user in flow.COMMAND_USERS else READERS
    return tuple(f"{user}-{number}" for number in range(count))


def users(partitions: int) -> tuple[NatsUser, ...]:
    """All users of a mesh whose log has so many partitions."""
    return tuple(NatsUser(name, tuple(_publish(name, partitions)), (f"{inbox(name)}.>",)) for name in flow.USERS)


def accounts(everybody: Iterable[NatsUser], passwords: Mapping[str, str], at_home: Iterable[NatsUser] = ()) -> str:
    """The block of the server's configuration. Without passwords users are proven by certificates (`verify_and_map`).

    The streams are in an account of their own (`HOME`); each user's account takes over from it what that user may publish, and nothing
    else. So an answer that is asked for under another's subject comes to the asker's account, where nobody listens and nothing is
    stored. `at_home` are users of the streams' own account.
    """
    exported: dict[str, list[str]] = {}
    blocks = []
    for one in everybody:
        # The names of its readers are for its permissions alone: the accounts would only repeat them.
        crossing = dict.fromkeys(_any_reader(subject) for subject in one.publish)
        for subject in crossing:
            exported.setdefault(subject, []).append(one.name)
        taken_over = [{"service": {"account": HOME, "subject": subject}} for subject in crossing]
        blocks.append(_block(one.name, [_rule(one, passwords)], "imports", taken_over))
    exports = [
        {"service": subject, "accounts": names, "response_type": "stream" if _PULL in subject else "singleton"}
        for subject, names in exported.items()
    ]
    home = _block(HOME, [_rule(one, passwords) for one in at_home], "exports", exports, "jetstream: enabled")
    return "\n".join(["accounts {", home, *blocks, "}", ""])


def _block(name: str, users: Sequence[object], kind: str, entries: Sequence[object], *settings: str) -> str:
    """One account, each of its entries on a line of its own."""
    lines = [f"  {setting}" for setting in settings]
    for what, of_it in (("users", users), (kind, entries)):
        lines += [f"  {what}: [", *(f"    {json.dumps(one)}" for one in of_it), "  ]"]
    return "\n".join([f"{name} {{", *lines, "}"])


def _rule(nats_user: NatsUser, passwords: Mapping[str, str]) -> dict[str, object]:
    login = (
        {"user": nats_user.name, "password": passwords[nats_user.name]}
        if passwords
        else {"user": SERVICE + nats_user.name}
    )
    return {**login, "permissions": {"publish": nats_user.publish, "subscribe": nats_user.subscribe}}


def _publish(user: str, partitions: int) -> list[str]:
    allowed = [f"{_API}.INFO"]
    for row in (*flow.FLOWS, flow.ROUTES):
        if user in row.publishers:
            allowed.append(_pattern(row.subject, user))
        if user in row.readers:
            for stream in _streams(row.stream, partitions):
                allowed += _reading(user, stream, row.durable)
    if user == "setup":
        allowed.append(f"{_API}.STREAM.LIST")
        for name in (*(stream.name for stream in flow.STREAMS), flow.ROUTES.stream):
            for stream in _streams(name, partitions):
                allowed += (f"{_API}.STREAM.{verb}.{stream}" for verb in ("CREATE", "UPDATE", "INFO"))
    if user == "ingest":
        # Its metrics say how full each stream is.
        allowed.append(f"{_API}.STREAM.LIST")
    return list(dict.fromkeys(allowed))


def _pattern(subject: str, user: str) -> str:
    """A subject of the table with wildcards for what varies; of a {leg} or a {by} only the user's own. Ids may have dots."""
    fixed = subject.replace("{leg}", user.removeprefix("dispatch-")).replace("{by}", user)
    first, *rest = fixed.split(".{", 1)
    if rest and all(token.startswith("{") for token in f"{{{rest[0]}".split(".")):
        return f"{first}.>"
    return re.sub(r"\{\w+\}", "*", fixed)


def _reading(user: str, stream: str, durable: str) -> list[str]:
    reading = [f"{_API}.STREAM.INFO.{stream}", f"{_API}.STREAM.MSG.GET.{stream}"]
    if stream == flow.LOG_META.name:
        return reading  # one message, which nobody needs a consumer for
    for name in reader_names(user, stream):
        reading += (f"{_CONSUMER}.{verb}.{stream}.{name}" for verb in ("CREATE", "DELETE", "MSG.NEXT"))
    if durable:
        reading += (f"{_CONSUMER}.{verb}.{stream}.{durable}" for verb in ("CREATE", "MSG.NEXT"))
        reading.append(f"$JS.ACK.{stream}.{durable}.>")
    return reading


def _any_reader(subject: str) -> str:
    """The subject with a wildcard for the reader's name, if it names one."""
    return f"{subject.rpartition('.')[0]}.*" if subject.startswith(f"{_CONSUMER}.") else subject


def _streams(name: str, partitions: int) -> list[str]:
    return [name.format(p=p) for p in range(partitions)] if "{p}" in name else [name]
