"""Publish permissions of the flow table: a subject token that names the publisher can only be used by that publisher."""

from __future__ import annotations

import itertools
import re

import pytest

from services.common.messaging import flow, permissions

TABLE = (*flow.FLOWS, flow.ROUTES)
NAMES_PUBLISHER = {"leg", "by"}
"""Variable tokens that name the publishing user."""
NAMES_SUBJECT = {
    "p",
    "alert_id",
    "incident_id",
    "command_id",
    "request_id",
    "disclosure_id",
    "device_id",
    "reader",
    "stream",
    "sequence",
    "replica",
    "stamp",
    "state",
    "ingest",
    "host",
}
"""Variable tokens that name a partition, a record, or a process of one user."""
PARTITIONS = 2


def rights(row: flow.Flow, user: str) -> str:
    """Permission pattern with which a user may publish a row's subject."""
    (right,) = (pattern for pattern in publish_of(user) if overlap(pattern, re.sub(r"\{\w+\}", "*", row.subject)))
    return right


def publish_of(user: str) -> list[str]:
    (nats_user,) = (candidate for candidate in permissions.users(PARTITIONS) if candidate.name == user)
    return [pattern for pattern in nats_user.publish if not pattern.startswith(("$JS.API", "$JS.ACK"))]


def overlap(text: str, other: str) -> bool:
    """Whether some subject matches both patterns. `>` matches one or more tokens."""
    for token, other_token in itertools.zip_longest(text.split("."), other.split(".")):
        if ">" in (token, other_token):
            return token is not None and other_token is not None
        if token is None or other_token is None or (token != other_token and "*" not in (token, other_token)):
            return False
    return True


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.subject)
def test_each_variable_token_is_classified(row: flow.Flow) -> None:
    tokens = set(re.findall(r"\{(\w+)\}", row.subject))
    assert tokens <= NAMES_PUBLISHER | NAMES_SUBJECT, "add the new token to NAMES_PUBLISHER or NAMES_SUBJECT"
    assert len(tokens & NAMES_PUBLISHER) == (1 if len(row.publishers) > 1 else len(tokens & NAMES_PUBLISHER)), (
        "if several users publish a subject, the subject must name its publisher"
    )


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.subject)
def test_no_two_users_may_publish_the_same_subject_of_a_row(row: flow.Flow) -> None:
    for user, other in itertools.combinations(row.publishers, 2):
        assert not overlap(rights(row, user), rights(row, other)), (user, other)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.subject)
def test_a_user_may_publish_only_its_own_publisher_token(row: flow.Flow) -> None:
    tokens = row.subject.split(".")
    for user in row.publishers:
        granted = rights(row, user).split(".")
        for n, token in enumerate(tokens):
            if token == "{by}":
                assert granted[n] == user
            if token == "{leg}":
                assert granted[n] == user.removeprefix("dispatch-")


@pytest.mark.parametrize("user", flow.USERS)
def test_a_user_may_publish_only_its_rows(user: str) -> None:
    own = {rights(row, user) for row in TABLE if user in row.publishers}
    assert set(publish_of(user)) == own
    for row in TABLE:
        if user not in row.publishers:
            theirs = {rights(row, other) for other in row.publishers}
            assert not any(overlap(mine, pattern) for mine in own for pattern in theirs), row.subject


def test_each_reader_with_dead_letters_may_publish_them() -> None:
    (row,) = (candidate for candidate in flow.FLOWS if candidate.stream == flow.DEAD_LETTERS.name)
    assert set(flow.DEAD_LETTER_USERS.values()) == set(row.publishers)
    for reader, user in flow.DEAD_LETTER_USERS.items():
        assert overlap(rights(row, user), flow.dead_letter_subject(reader, "LOG_0", 7))


def test_each_publisher_of_disclosures_has_its_roles() -> None:
    from services.registry.disclosure.translate import DISCLOSED_FOR, DISCLOSES_TO_OTHERS, NOTIFIES, SHOWS_HER_MAP

    (row,) = (candidate for candidate in flow.FLOWS if candidate.stream == flow.DISCLOSURES.name)
    assert {*DISCLOSED_FOR, NOTIFIES} == set(row.publishers)
    assert set(row.publishers) > DISCLOSES_TO_OTHERS and SHOWS_HER_MAP in row.publishers
