"""What each user of the NATS server may do: generated from the flow table, so that the table is what the server enforces. Pure.

There is one account. A user publishes the subjects that the table gives it, reads the streams that the table gives it, and has its
answers come to an inbox that no other user can listen on. Nobody may delete or purge anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from services.common import flow

_API = "$JS.API"
SERVICE = "spiffe://tandem/service/"
"""Prefix of the SPIFFE ids of Tandem's own processes; the user's name follows."""


@dataclass(frozen=True, slots=True)
class User:
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


def users(partitions: int) -> tuple[User, ...]:
    """All users of a mesh whose log has so many partitions."""
    return tuple(User(name, tuple(_publish(name, partitions)), (f"{inbox(name)}.>",)) for name in flow.USERS)


def authorization(everybody: Iterable[User], passwords: Mapping[str, str]) -> str:
    """The block of the server's configuration. Without passwords users are proven by certificates (`verify_and_map`)."""
    rules = []
    for one in everybody:
        login = {"user": one.name, "password": passwords[one.name]} if passwords else {"user": SERVICE + one.name}
        rules.append({**login, "permissions": {"publish": one.publish, "subscribe": one.subscribe}})
    return "authorization " + json.dumps({"users": rules}, indent=2) + "\n"


def _publish(user: str, partitions: int) -> list[str]:
    allowed = [f"{_API}.INFO"]
    for row in (*flow.FLOWS, flow.ROUTES):
        if user in row.publishers:
            allowed.append(_pattern(row.subject, user))
        if user in row.readers:
            for stream in _streams(row.stream, partitions):
                allowed += _reading(stream, row.durable)
    if user == "setup":
        allowed.append(f"{_API}.STREAM.LIST")
        for name in (*(one.name for one in flow.STREAMS), flow.ROUTES.stream):
            for stream in _streams(name, partitions):
                allowed += (f"{_API}.STREAM.{verb}.{stream}" for verb in ("CREATE", "UPDATE", "INFO"))
    if user == "ingest":
        # Its metrics say how full each stream is.
        allowed.append(f"{_API}.STREAM.LIST")
    return list(dict.fromkeys(allowed))


def _pattern(subject: str, user: str) -> str:
    """A subject of the table with wildcards for what varies; of a {leg} only the user's own. Ids may have dots."""
    fixed = subject.replace("{leg}", user.removeprefix("dispatch-"))
    first, *rest = fixed.split(".{", 1)
    if rest and all(token.startswith("{") for token in f"{{{rest[0]}".split(".")):
        return f"{first}.>"
    return re.sub(r"\{\w+\}", "*", fixed)


def _reading(stream: str, durable: str) -> list[str]:
    reading = [f"{_API}.STREAM.INFO.{stream}", f"{_API}.STREAM.MSG.GET.{stream}"]
    reading += [f"{_API}.CONSUMER.CREATE.{stream}.*", f"{_API}.CONSUMER.MSG.NEXT.{stream}.*"]
    return [*reading, f"$JS.ACK.{stream}.{durable}.>"] if durable else reading


def _streams(name: str, partitions: int) -> list[str]:
    return [name.format(p=p) for p in range(partitions)] if "{p}" in name else [name]
