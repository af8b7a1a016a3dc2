"""Webhooks of a leg to a real receiver, and links by which units on the road accept an offer."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from standardwebhooks import WebhookVerificationError

from services.common import times
from services.common.clock import wall_us
from services.common.errors import FailedPrecondition
from services.common.messaging.bus import Bus
from services.common.retrying import Backoff
from services.common.rpc import server
from services.common.web import receivers
from services.dispatch.exchange import webhooks
from services.dispatch.exchange.links import InvalidLink, Links, Token, open_key
from services.dispatch.leg.store import Store
from services.dispatch.leg.tables import AssignmentRow
from tandem.dispatch.v1 import dispatch_pb2, roster_pb2, roster_pb2_grpc
from tests.support.common.nats import TestServer
from tests.support.common.ports import free_port
from tests.support.dispatch.dispatch import DESKS, PATIENCE_S, SECRET, alert, publish, running, settings
from tests.support.dispatch.receivers import NEW_SECRET, OLD_SECRET, Receiver, configured, receiver_entry, until_queued

PARTNERS = (Path(__file__).parents[3] / "docs" / "reference" / "partners.md").read_text()
SNIPPET = re.search(r"^## Webhooks$.*?```python\n(.*?)```", PARTNERS, re.S | re.M)


def verify(headers: Mapping[str, str], body: bytes, secret: str, accepted_ids: set[str]) -> bool:
    """Verifies a request with the code of docs/reference/partners.md, which uses the library of Standard Webhooks."""
    assert SNIPPET
    namespace: dict[str, Any] = {}
    exec(SNIPPET[1], namespace)  # noqa: S102  # runs the documented code
    return bool(namespace["verify"](headers, body, secret, accepted_ids))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens the backoff to a tenth."""
    monkeypatch.setattr(webhooks, "RETRY", Backoff(0.1, 300.0))


async def opened(bus: Bus, *sequences: int) -> None:
    await publish(bus, *(alert(sequence, incident=f"incident-{sequence}") for sequence in sequences))


async def test_each_step_is_sent_signed_in_order_and_retried_until_it_is_accepted(
    bus: Bus, nats: TestServer, tmp_path: Path
) -> None:
    receiver = Receiver()
    receiver.answers = [500, 307, 429, 204]
    given = settings("police", nats, tmp_path, webhooks=configured(tmp_path, receiver_entry(receiver)))
    async with receiver.serving(), running(given) as leg:
        await until_queued(given.exchange_database)
        await opened(bus, 1, 2, 3)
        await receiver.wait_for(6)
        async with leg.desk.subscription() as desk:
            offered = (await desk.next(dispatch_pb2.OFFERED)).step.assignment
            await leg.desk.acknowledge(offered.assignment_id)
        await receiver.wait_for(7)
    ids = [headers["webhook-id"] for headers, _ in receiver.requests]
    assert len(set(ids[:4])) == 1 and len(set(ids)) == 4 and receiver.elsewhere == 0
    sequences = [step["sequence"] for step in receiver.steps()]
    assert sequences == sorted(sequences)
    assert receiver.steps()[-1]["step"]["assignment"]["state"] == "ACKNOWLEDGED"
    accepted_ids: set[str] = set()
    for headers, body in receiver.requests[3:]:
        assert verify(headers, body, OLD_SECRET, accepted_ids)
        accepted_ids.add(headers["webhook-id"])
    headers, body = receiver.requests[0]
    assert not verify(headers, body, OLD_SECRET, accepted_ids)  # accepted at its fourth attempt
    for changed, content in ((headers, body + b" "), (headers | {"webhook-id": "hook-1"}, body)):
        with pytest.raises(WebhookVerificationError, match="No matching signature"):
            verify(changed, content, OLD_SECRET, accepted_ids)
    with pytest.raises(WebhookVerificationError, match="too old"):
        verify(headers | {"webhook-timestamp": str(wall_us() // 1_000_000 - 400)}, body, OLD_SECRET, accepted_ids)


async def test_queued_steps_survive_a_restart_of_the_leg_and_of_the_receiver(
    bus: Bus, nats: TestServer, tmp_path: Path
) -> None:
    receiver = Receiver()  # not serving yet
    given = settings("police", nats, tmp_path, webhooks=configured(tmp_path, receiver_entry(receiver)))
    async with running(given) as leg:
        await until_queued(given.exchange_database)
        await opened(bus, 1)
        async with leg.desk.subscription() as desk:
            await desk.next(dispatch_pb2.OFFERED)
    async with receiver.serving(), running(given):
        await receiver.wait_for(1)
    assert receiver.steps()[0]["step"]["assignment"]["state"] == "OFFERED"


async def test_a_leg_offers_while_the_database_of_its_webhooks_cannot_be_opened(
    bus: Bus, nats: TestServer, tmp_path: Path
) -> None:
    receiver = Receiver()
    given = settings("police", nats, tmp_path, webhooks=configured(tmp_path, receiver_entry(receiver)))
    given.exchange_database.mkdir()  # SQLite can't open a folder
    async with receiver.serving(), running(given) as leg, leg.desk.subscription() as desk:
        await opened(bus, 1)
        await desk.next(dispatch_pb2.OFFERED)
        given.exchange_database.rmdir()
        await until_queued(given.exchange_database)
        await opened(bus, 2)
        assert await sequence_of_offer(receiver, "incident-2")


def lose_database(folder: Path) -> None:
    """Deletes the database of the police leg, as docs/how-to/respond/leg-database-lost.md moves it away."""
    for file in folder.glob("dispatch-police.sqlite3*"):
        file.unlink()


async def sequence_of_offer(receiver: Receiver, incident_id: str) -> int:
    """Waits until a receiver has the first step of an incident, and returns its sequence."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            for step in receiver.steps():
                if step["step"]["assignment"]["incident_id"] == incident_id:
                    return int(step["sequence"])
            await asyncio.sleep(0.02)


async def test_a_receiver_gets_the_steps_of_a_leg_whose_database_was_lost(
    bus: Bus, nats: TestServer, tmp_path: Path
) -> None:
    receiver = Receiver()
    given = settings("police", nats, tmp_path, webhooks=configured(tmp_path, receiver_entry(receiver)))
    async with receiver.serving():
        async with running(given) as leg:
            await until_queued(given.exchange_database)
            await opened(bus, 1, 2, 3)
            await receiver.wait_for(3)
            for step in receiver.steps():
                id_ = step["step"]["assignment"]["assignment_id"]
                await leg.desk.acknowledge(id_)
                await leg.desk.call("Progress", assignment_id=id_, state=dispatch_pb2.DISPATCHED)
                await leg.desk.call("Progress", assignment_id=id_, state=dispatch_pb2.EN_ROUTE)
            await receiver.wait_for(12)
        lose_database(tmp_path)
        async with running(given):  # reads all alerts again
            await opened(bus, 4)
            sequence = await sequence_of_offer(receiver, "incident-4")
            assert sequence < receiver.steps()[11]["sequence"], "the new record is shorter than the old one"
        async with running(given):
            await opened(bus, 5)
            assert await sequence_of_offer(receiver, "incident-5") > sequence
    ids = [headers["webhook-id"] for headers, _ in receiver.requests]
    assert len(set(ids)) == len(ids), "a step that the receiver has isn't sent a second time"


async def test_after_the_deadline_an_alarm_is_raised_and_the_next_step_is_sent(
    bus: Bus, nats: TestServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = Receiver()
    receiver.answers = [503] * 1_000
    entry = receiver_entry(receiver, name="brief", deadline_s=3_600)
    given = settings("police", nats, tmp_path, webhooks=configured(tmp_path, entry))

    labels = {"receiver": "brief", "outcome": "given up"}
    async with receiver.serving(), running(given) as leg:
        await until_queued(given.exchange_database)
        await opened(bus, 1)
        await receiver.wait_for(2)
        monkeypatch.setattr(webhooks, "wall_us", lambda: wall_us() + 3_600_000_000)
        async with asyncio.timeout(PATIENCE_S):
            while not leg.registry.get_sample_value("tandem_webhook_tries_total", labels):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        receiver.answers.clear()
        tried = len(receiver.requests)
        await opened(bus, 2)
        await receiver.wait_for(tried + 1)
    incidents = [step["step"]["assignment"]["incident_id"] for step in receiver.steps()]
    assert incidents == ["incident-1"] * tried + ["incident-2"]


async def test_during_a_key_rotation_either_key_verifies(bus: Bus, nats: TestServer, tmp_path: Path) -> None:
    receiver = Receiver()
    entry = receiver_entry(receiver, secrets=[OLD_SECRET, NEW_SECRET])
    given = settings("police", nats, tmp_path, webhooks=configured(tmp_path, entry))
    async with receiver.serving(), running(given):
        await until_queued(given.exchange_database)
        await opened(bus, 1)
        await receiver.wait_for(1)
    headers, body = receiver.requests[0]
    assert verify(headers, body, OLD_SECRET, set()) and verify(headers, body, NEW_SECRET, set())
    with pytest.raises(WebhookVerificationError, match="No matching signature"):
        verify(headers, body, "whsec_" + "A" * 43 + "=", set())


async def test_a_receiver_gets_the_legs_half_of_the_incident_in_its_form(
    bus: Bus, nats: TestServer, tmp_path: Path
) -> None:
    board, cad = Receiver(), Receiver()
    entries = (receiver_entry(board, name="board", form="step"), receiver_entry(cad, form="eido"))
    given = settings("police", nats, tmp_path, webhooks=configured(tmp_path, *entries))
    async with board.serving(), cad.serving(), running(given) as leg:
        await until_queued(given.exchange_database, 2)
        await opened(bus, 1)
        await board.wait_for(1)
        async with leg.desk.subscription() as desk:
            offered = (await desk.next(dispatch_pb2.OFFERED)).step.assignment
            await leg.desk.acknowledge(offered.assignment_id)
        await board.wait_for(2)
        await cad.wait_for(2)
    both = board.requests + cad.requests
    assert [headers["Content-Type"] for headers, _ in both] == ["application/json"] * 4
    step_ids = [message["step"]["step_id"] for message in board.steps()]
    assert [message["type"] for message in board.steps()] == ["tandem.dispatch.v1.Step"] * 2
    assert [document["$id"] for document in cad.steps()] == [f"urn:tandem:eido:{step_id}" for step_id in step_ids]
    notes = [[note["noteId"] for note in document["notesComponent"]] for document in cad.steps()]
    assert notes == [step_ids[:1], step_ids], "each document names the steps before, too"
    assert all(verify(headers, body, OLD_SECRET, set()) for headers, body in both)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"url": "http://cad.example/hook"}, "url must begin with https"),
        ({"url": "ftp://127.0.0.1/hook"}, "url must begin with https"),
        ({"secrets": []}, "cad: secrets must hold 1 or 2 secrets"),
        ({"secrets": [OLD_SECRET] * 3}, "secrets must hold 1 or 2 secrets"),
        ({"secrets": ["whsec_c2VjcmV0"]}, "secrets: each must be whsec_ and the base64 of 24 to 64 bytes"),
        ({"secrets": ["whsec_secret-that-is-no-base64"]}, "secrets: each must be whsec_"),
        ({"secrets": [OLD_SECRET, 7]}, "secrets: each must be whsec_"),
        ({"name": "Our CAD"}, "name: must be"),
        ({"deadline_s": 0}, "deadline"),
        ({"form": "xml"}, r"cad: form: must be step, or eido for the incident so far \(example: eido\)$"),
        ({"form": "cap"}, r"cad: form: must be step, or eido for the incident so far \(example: eido\)$"),
    ],
)
def test_an_invalid_receiver_is_named_in_the_error_without_its_secrets(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    path = configured(tmp_path, {"name": "cad", "url": "https://cad.example", "secrets": [OLD_SECRET], **changes})
    with pytest.raises(FailedPrecondition, match=reason) as refused:
        receivers.read(path)
    assert "no-base64" not in str(refused.value) and OLD_SECRET not in str(refused.value)
    assert "c2VjcmV0" not in str(refused.value)


# ── links ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def ask(method: str, url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.request(method, url, allow_redirects=False) as answer:
        return answer.status, await answer.text()


async def test_a_link_accepts_an_offer_once_and_only_by_its_button(bus: Bus, nats: TestServer, tmp_path: Path) -> None:
    receiver, port = Receiver(), free_port()
    given = settings(
        "police",
        nats,
        tmp_path,
        webhooks=configured(tmp_path, receiver_entry(receiver, name="sms", links=True)),
        link_port=port,
        link_url=f"http://127.0.0.1:{port}",
    )
    async with receiver.serving(), running(given) as leg:
        await until_queued(given.exchange_database)
        await opened(bus, 1)
        await receiver.wait_for(1)
        url = receiver.steps()[0]["acknowledge_url"]
        for _ in range(3):
            status, text = await ask("GET", url)
            assert status == 200 and "<button>" in text
        assert await states(leg) == [dispatch_pb2.OFFERED]
        first = await ask("POST", url)
        assert first[0] == 200 and "You have taken it." in first[1]
        assert await ask("POST", url) == first and "<button>" not in (await ask("GET", url))[1]
        (listed,) = (await leg.desk.list()).incidents[0].assignments
        assert (listed.state, listed.acknowledged_by) == (dispatch_pb2.ACKNOWLEDGED, "link/sms")
        await receiver.wait_for(2)
        assert [step["step"]["number"] for step in receiver.steps()] == [1, 2]
        assert "acknowledge_url" not in receiver.steps()[1]

        links = Links("police", open_key(given.link_key), given.link_url)
        soon = wall_us() // 1_000_000 + 60
        token = Token("police", listed.assignment_id, "sms", soon, "n")
        expected = {
            url[:-1] + ("A" if url[-1] != "A" else "B"): 403,
            url + ".x": 403,
            address(links, token_of(token, expires_s=soon - 61)): 410,
            address(Links("police", bytes(32), given.link_url), token): 403,
            address(Links("warning", open_key(given.link_key), given.link_url), token_of(token, leg="warning")): 403,
            address(links, token_of(token, assignment_id="assign-none", nonce="m")): 404,
        }
        for forged, wanted in expected.items():
            assert (await ask("POST", forged))[0] == wanted, forged
        assert "another leg" in (await ask("GET", list(expected)[4]))[1]
        await publish(bus, alert(9, incident="incident-1", ends=True))
        async with asyncio.timeout(PATIENCE_S):
            while await states(leg) != [dispatch_pb2.STOOD_DOWN]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        status, text = await ask("POST", address(links, token_of(token, nonce="late")))
        assert status == 409 and "It can&#x27;t be taken" in text


@pytest.mark.parametrize("meanwhile", [False, True], ids=["before", "meanwhile"])
async def test_a_unit_accepts_its_own_offer_and_not_one_that_has_ended(
    bus: Bus, nats: TestServer, tmp_path: Path, meanwhile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver, port = Receiver(), free_port()
    entry = receiver_entry(receiver, name="sms", links=True)
    given = settings(
        "police",
        nats,
        tmp_path,
        webhooks=configured(tmp_path, entry),
        link_port=port,
        link_url=f"http://127.0.0.1:{port}",
    )
    async with receiver.serving(), running(given) as leg, server.channel(f"127.0.0.1:{given.port}") as channel:
        roster, desk = roster_pb2_grpc.RosterServiceStub(channel), server.bearer(DESKS["police"], SECRET)
        await until_queued(given.exchange_database)
        office = roster_pb2.Office(office_id="o1", version=1, supervisor_desk="s1", national_desk="n1")
        await roster.PutOffices(roster_pb2.PutOfficesRequest(offices=[office]), metadata=desk)
        await roster.PutUnits(roster_pb2.PutUnitsRequest(units=[unit("car-a", 1)]), metadata=desk)
        await opened(bus, 1)
        await receiver.wait_for(1)
        to_a = receiver.steps()[-1]["acknowledge_url"]
        gone = [unit("car-a", 2, removed=True), unit("car-b", 1)]
        remove = partial(roster.PutUnits, roster_pb2.PutUnitsRequest(units=gone), metadata=desk)
        read = Store.assignment

        async def read_and_remove(store: Store, assignment_id: str) -> AssignmentRow | None:
            row = await read(store, assignment_id)
            await remove()
            return row

        with monkeypatch.context() as patched:
            if meanwhile:
                patched.setattr(Store, "assignment", read_and_remove)
            else:
                await remove()
            status, text = await ask("POST", to_a)
        assert status == 409 and "the offer to this unit has ended, and nobody has the assignment yet" in text
        await until_offered(receiver, "car-b")
        to_b = receiver.steps()[-1]["acknowledge_url"]
        assert (await ask("POST", to_b))[0] == 200
        (listed,) = (await leg.desk.list()).incidents[0].assignments
        assert (listed.state, listed.acknowledged_by) == (dispatch_pb2.ACKNOWLEDGED, "link/car-b")


async def test_units_that_are_asked_at_the_same_time_each_have_a_link_and_the_first_wins(
    bus: Bus, nats: TestServer, tmp_path: Path
) -> None:
    receiver, port = Receiver(), free_port()
    given = settings(
        "police",
        nats,
        tmp_path,
        webhooks=configured(tmp_path, receiver_entry(receiver, name="sms", links=True)),
        link_port=port,
        link_url=f"http://127.0.0.1:{port}",
    )
    async with receiver.serving(), running(given) as leg:
        await until_queued(given.exchange_database)
        office = roster_pb2.Office(office_id="o1", version=1, supervisor_desk="s1", national_desk="n1")
        await leg.desk.call("PutOffices", offices=[office])
        await leg.desk.call("PutUnits", units=[unit("car-a", 1), unit("car-b", 1)])
        await opened(bus, 1)
        await receiver.wait_for(1)
        first = receiver.steps()[0]
        seen = first["step"]["assignment"]
        send = {"assignment_id": seen["assignment_id"], "unit_id": "car-b", "offer_number": seen["offer_number"]}
        await leg.desk.call("SendUnit", **send)
        await receiver.wait_for(2)
        second = receiver.steps()[1]
        status, text = await ask("POST", second["acknowledge_url"])
        assert status == 200 and "You have taken it." in text
        (listed,) = (await leg.desk.list()).incidents[0].assignments
        assert (listed.choice.unit_id, listed.acknowledged_by) == ("car-b", "link/car-b")
        status, text = await ask("POST", first["acknowledge_url"])
        assert status == 409 and "another unit has the assignment" in text


def unit(unit_id: str, version: int, *, removed: bool = False) -> roster_pb2.Unit:
    now_s = wall_us() // 1_000_000
    return roster_pb2.Unit(
        unit_id=unit_id,
        version=version,
        office_id="o1",
        unit_class="patrol-car",
        shift_from=times.to_timestamp((now_s - 3_600) * 1000),
        shift_until=times.to_timestamp((now_s + 3_600) * 1000),
        removed=removed,
    )


async def until_offered(receiver: Receiver, unit_id: str) -> None:
    """Waits until the last step at the receiver is an offer to this unit."""
    async with asyncio.timeout(PATIENCE_S):
        while receiver.steps()[-1]["step"]["assignment"].get("choice", {}).get("unit_id") != unit_id:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def states(leg: Any) -> list[int]:
    return [assignment.state for assignment in (await leg.desk.list()).incidents[0].assignments if assignment.leg == 2]


def token_of(token: Token, **other: Any) -> Token:
    return dataclasses.replace(token, **other)


def address(links: Links, token: Token) -> str:
    return f"{links._base_url}/acknowledge/{links.write(token)}"


def test_no_other_spelling_of_a_token_is_accepted() -> None:
    links = Links("police", bytes(32), "http://x")
    text = links.write(Token("police", "assign-1", "sms", 100, "n"))
    assert links.read(text, 99).assignment_id == "assign-1"
    for other in (text + "=", text.upper(), text + ".", f"{text}.{text}", "", ".", "é.é"):
        with pytest.raises(InvalidLink):
            links.read(other, 99)
    with pytest.raises(InvalidLink, match="expired"):
        links.read(text, 100)
