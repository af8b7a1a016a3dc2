"""Permissions of each user of the NATS server, generated from the flow table, so that the server enforces the table. Pure.

A user may publish the subjects and read the streams that the table gives it. Its answers come to an inbox in the user's own
account. No user may delete or purge anything but its own readers.

A stream accepts a limited number of consumers (1,000 by default) for all users together. So each user has a fixed list of names for its
consumers. However many consumers a user creates, the other users' readers keep their places.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from services.common.messaging import flow

HOME = "tandem"
"""Name of the account that owns the streams."""
_API = "$JS.API"
_CONSUMER = f"{_API}.CONSUMER"
_PULL = f"{_CONSUMER}.MSG.NEXT."
"""Prefix of the subject of pull requests. Unlike other API requests they get many answers."""
READERS = 16
"""Maximum number of a service's consumers on one stream, for all its processes together. Consumers of dead processes count
too, because the server keeps them for 10 s."""
COMMAND_READERS = 8
"""Maximum number of consumers of a command-line user on one stream."""
ALERT_READERS = 128
"""Maximum number of the evaluators' consumers on ALERTS. Each open WatchAlerts call needs a consumer of its own."""
SERVICE = "spiffe://tandem/service/"
"""Prefix of the SPIFFE ids of Tandem's own processes. The name of the NATS user follows it."""


@dataclass(frozen=True, slots=True)
class NatsUser:
    """A user of the NATS server, with its permissions."""

    name: str
    """Name from flow.USERS."""
    publish: tuple[str, ...]
    """Subjects that the user may publish to, including those of JetStream's API."""
    subscribe: tuple[str, ...]
    """Subjects that the user may subscribe to: its inboxes."""


def inbox(user: str) -> str:
    """Subject prefix of a user's inboxes."""
    return f"_INBOX.{user}"


def reader_names(user: str, stream: str) -> tuple[str, ...]:
    """Consumer names that a user may use on a stream. A user that isn't in the flow table gets as many as a service."""
    if (user, stream) == ("geofence", flow.ALERTS.name):
        count = ALERT_READERS
    else:
        count = COMMAND_READERS if user in flow.COMMAND_USERS else READERS
    return tuple(f"{user}-{number}" for number in range(count))


def users(partitions: int) -> tuple[NatsUser, ...]:
    """All users of a mesh, with their permissions for a log with this number of partitions."""
    return tuple(NatsUser(name, tuple(_publish(name, partitions)), (f"{inbox(name)}.>",)) for name in flow.USERS)


def accounts(everybody: Iterable[NatsUser], passwords: Mapping[str, str], at_home: Iterable[NatsUser] = ()) -> str:
    """Generates the `accounts` block of the server's configuration. Without passwords, users authenticate by certificate
    (`verify_and_map`).

    The streams are in an account of their own (`HOME`). Each user's account imports from it only the subjects that the user may
    publish. If a user asks for an answer under another user's subject, the answer comes to the asking user's account, where no one
    listens and nothing is stored. `at_home` are users of the account `HOME`.
    """
    exported: dict[str, list[str]] = {}
    blocks = []
    for user in everybody:
        # Only the permissions need the names of the readers. The accounts would repeat them.
        crossing = dict.fromkeys(_any_reader(subject) for subject in user.publish)
        for subject in crossing:
            exported.setdefault(subject, []).append(user.name)
        imports = [{"service": {"account": HOME, "subject": subject}} for subject in crossing]
        blocks.append(_block(user.name, [_rule(user, passwords)], "imports", entries=imports))
    exports = [
        {"service": subject, "accounts": names, "response_type": "stream" if _PULL in subject else "singleton"}
        for subject, names in exported.items()
    ]
    home = _block(
        HOME, [_rule(user, passwords) for user in at_home], "exports", entries=exports, setting="jetstream: enabled"
    )
    return "\n".join(["accounts {", home, *blocks, "}", ""])


def _block(name: str, users: Sequence[object], kind: str, *, entries: Sequence[object], setting: str = "") -> str:
    """Formats an account's block, with each entry on a line of its own."""
    lines = [f"  {setting}"] if setting else []
    for key, values in (("users", users), (kind, entries)):
        lines += [f"  {key}: [", *(f"    {json.dumps(value)}" for value in values), "  ]"]
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
        # For its metrics of the streams' sizes.
        allowed.append(f"{_API}.STREAM.LIST")
    return list(dict.fromkeys(allowed))


def _pattern(subject: str, user: str) -> str:
    """Permission pattern for a subject of the flow table: {leg} and {by} become the user's own token, other variables become wildcards.

    Trailing variables become `>`, because ids may contain dots.
    """
    fixed = subject.replace("{leg}", user.removeprefix("dispatch-")).replace("{by}", user)
    first, *rest = fixed.split(".{", 1)
    if rest and all(token.startswith("{") for token in f"{{{rest[0]}".split(".")):
        return f"{first}.>"
    return re.sub(r"\{\w+\}", "*", fixed)


def _reading(user: str, stream: str, durable: str) -> list[str]:
    reading = [f"{_API}.STREAM.INFO.{stream}", f"{_API}.STREAM.MSG.GET.{stream}"]
    if stream == flow.LOG_META.name:
        return reading  # a single message, which is read without a consumer
    for name in reader_names(user, stream):
        reading += (f"{_CONSUMER}.{verb}.{stream}.{name}" for verb in ("CREATE", "DELETE", "MSG.NEXT"))
    if durable:
        reading += (f"{_CONSUMER}.{verb}.{stream}.{durable}" for verb in ("CREATE", "MSG.NEXT"))
        reading.append(f"$JS.ACK.{stream}.{durable}.>")
    return reading


def _any_reader(subject: str) -> str:
    """Replaces the reader's name in a consumer subject by a wildcard. Other subjects stay unchanged."""
    return f"{subject.rpartition('.')[0]}.*" if subject.startswith(f"{_CONSUMER}.") else subject


def _streams(name: str, partitions: int) -> list[str]:
    return [name.format(p=p) for p in range(partitions)] if "{p}" in name else [name]
