"""Who may publish what, by the table alone: a token that names the publisher is bound to the publisher by its rights."""

from __future__ import annotations

import itertools
import re

import pytest

from services.common.messaging import flow, permissions

TABLE = (*flow.FLOWS, flow.ROUTES)
NAMES_PUBLISHER = {"leg", "by"}
"""Variable tokens that name the user who publishes."""
NAMES_SUBJECT = {
    "p",
    "alert_id",
    "incident_id",
    "command_id",
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
"""Variable tokens that name something else: a partition, a record, a process of one user."""
PARTITIONS = 2


def rights(row: flow.Flow, user: str) -> str:
    """The pattern under which a user may publish a row."""
    (found,) = (one for one in publish_of(user) if overlap(one, re.sub(r"\{\w+\}", "*", row.subject)))
    return found


def publish_of(user: str) -> list[str]:
    (found,) = (one for one in permissions.users(PARTITIONS) if one.name == user)
    return [one for one in found.publish if not one.startswith(("$JS.API", "$JS.ACK"))]


def overlap(text: str, other: str) -> bool:
    """Whether some subject matches both patterns; `>` is one token or more."""
    for mine, its in itertools.zip_longest(text.split("."), other.split(".")):
        if ">" in (mine, its):
            return mine is not None and its is not None
        if mine is None or its is None or (mine != its and "*" not in (mine, its)):
            return False
    return True


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.subject)
def test_each_variable_token_is_known_to_name_the_publisher_or_something_else(row: flow.Flow) -> None:
    tokens = set(re.findall(r"\{(\w+)\}", row.subject))
    assert tokens <= NAMES_PUBLISHER | NAMES_SUBJECT, "say here what a new token names"
    assert len(tokens & NAMES_PUBLISHER) == (1 if len(row.publishers) > 1 else len(tokens & NAMES_PUBLISHER)), (
        "where several users publish, the subject names the one who did"
    )


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.subject)
def test_no_two_users_may_publish_the_same_subject_of_a_row(row: flow.Flow) -> None:
    for one, other in itertools.combinations(row.publishers, 2):
        assert not overlap(rights(row, one), rights(row, other)), (one, other)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.subject)
def test_a_token_that_names_the_publisher_is_the_publishers_own(row: flow.Flow) -> None:
    tokens = row.subject.split(".")
    for user in row.publishers:
        granted = rights(row, user).split(".")
        for n, token in enumerate(tokens):
            if token == "{by}":
                assert granted[n] == user
            if token == "{leg}":
                assert granted[n] == user.removeprefix("dispatch-")


@pytest.mark.parametrize("user", flow.USERS)
def test_a_user_may_publish_its_rows_and_nothing_else(user: str) -> None:
    own = {rights(row, user) for row in TABLE if user in row.publishers}
    assert set(publish_of(user)) == own
    for row in TABLE:
        if user not in row.publishers:
            theirs = {rights(row, other) for other in row.publishers}
            assert not any(overlap(mine, one) for mine in own for one in theirs), row.subject


def test_each_reader_that_sets_aside_is_a_user_who_may() -> None:
    (row,) = (one for one in flow.FLOWS if one.stream == flow.DEAD_LETTERS.name)
    assert set(flow.DEAD_LETTER_USERS.values()) == set(row.publishers)
    for reader, user in flow.DEAD_LETTER_USERS.items():
        assert overlap(rights(row, user), flow.dead_letter_subject(reader, "LOG_0", 7))


def test_each_publisher_of_disclosures_has_its_roles() -> None:
    from services.registry.translate_ledger import DISCLOSED_FOR, DISCLOSES_TO_OTHERS

    (row,) = (one for one in flow.FLOWS if one.stream == flow.DISCLOSURES.name)
    assert set(DISCLOSED_FOR) == set(row.publishers)
    assert set(row.publishers) > DISCLOSES_TO_OTHERS
