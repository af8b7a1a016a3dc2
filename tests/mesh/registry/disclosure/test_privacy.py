"""The registry process: who may read personal data, on which grounds, which fields, and that no data is stored in plain text."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from services.common.messaging import bus as buses
from services.common.messaging import flow, pull
from services.common.messaging.bus import Bus
from services.common.rpc import server
from tandem.common.v1 import ledger_pb2
from tandem.registry.v1 import disclosure_pb2, registry_pb2
from tests.support.common.mesh import tandem
from tests.support.registry import records
from tests.support.registry.registry import MOJ, NPA, SECRET, Client, RegistryMesh

MOJ_DESK, NPA_DESK = "spiffe://moj/desk/seoul", "spiffe://npa/desk/seoul"
REVIEWER = "spiffe://tandem/reviewer/one"
GROUNDS = disclosure_pb2.Grounds(
    legal_basis="STALKING_9_1_3_2", purpose=disclosure_pb2.PURPOSE_ENFORCEMENT, reference="incident-7"
)
NUMBER = "770717-1234567"
PHONE = "010-9876-5432"
ADDRESS = "서울특별시 비밀구 숨은로 17"
WEARER_NAME = "남궁비밀"
PERSON_NAME = "황보비밀"
BIRTH_DATE = "1977-07-17"


@pytest.fixture
async def client(mesh: RegistryMesh) -> AsyncIterator[Client]:
    """Client of a registry with a wearer, an order against the wearer, and the protected person."""
    async with mesh.connected() as connected:
        wearer = records.wearer("w-secret", NUMBER)
        wearer.name = WEARER_NAME
        wearer.birth_date = BIRTH_DATE
        wearer.phone = PHONE
        wearer.address = ADDRESS
        wearer.sex = registry_pb2.SEX_MALE
        order = records.order("o-secret", ("p-secret",), NUMBER)
        order.respondent.name, order.respondent.birth_date = WEARER_NAME, BIRTH_DATE
        order.respondent.phone, order.respondent.address = PHONE, ADDRESS
        person = records.person("p-secret")
        person.name = PERSON_NAME
        await connected.put(wearer, person, order)
        yield connected


async def read_wearer(client: Client, who: str, grounds: disclosure_pb2.Grounds = GROUNDS) -> registry_pb2.Wearer:
    request = disclosure_pb2.ReadWearerRequest(wearer_id="w-secret", grounds=grounds)
    answer = await client.disclosures.ReadWearer(request, metadata=server.bearer(who, SECRET), timeout=10)
    return answer.wearer


async def read_person(
    client: Client, who: str, person_id: str = "p-secret"
) -> disclosure_pb2.ReadProtectedPersonResponse:
    request = disclosure_pb2.ReadProtectedPersonRequest(person_id=person_id, grounds=GROUNDS)
    answer = await client.disclosures.ReadProtectedPerson(request, metadata=server.bearer(who, SECRET), timeout=10)
    return answer


def rows(mesh: RegistryMesh) -> list[Any]:
    return mesh.query(
        "select who, deed, record_kind, record_id, legal_basis, disclosure_id from ledger order by sequence"
    )


async def test_each_role_sees_what_it_needs(client: Client) -> None:
    whole = await read_wearer(client, MOJ)
    assert (whole.national_id, whole.address, whole.phone) == (NUMBER.replace("-", ""), ADDRESS, PHONE)
    police = await read_wearer(client, NPA_DESK)
    assert (police.name, police.birth_date, police.phone) == (WEARER_NAME, BIRTH_DATE, PHONE)
    assert (police.national_id, police.address) == ("", "")
    assert (await read_wearer(client, MOJ_DESK)).national_id == ""


async def test_probation_does_not_see_where_the_protected_person_lives(client: Client) -> None:
    police = await read_person(client, NPA_DESK)
    assert [place.place_id for place in police.places] == ["home"] and police.places[0].HasField("circle")
    probation = await read_person(client, MOJ_DESK)
    assert probation.protected_person.name == PERSON_NAME
    assert list(probation.places) == []
    assert list((await read_person(client, REVIEWER)).places) == []


async def test_places_of_two_orders_with_one_id_are_both_shown(client: Client) -> None:
    """She has moved: the earlier order calls her old home `home`, the later ones her new home."""
    orders = [records.order(f"o-moved-{n}", ("p-moved",), NUMBER) for n in range(3)]
    for later in orders[1:]:
        later.places[0].circle.lat_deg = 37.6
    await client.put(records.person("p-moved"), *orders)
    places = (await read_person(client, NPA_DESK, "p-moved")).places
    assert [(place.place_id, place.circle.lat_deg) for place in places] == [("home", 37.5), ("home", 37.6)]


@pytest.mark.parametrize(
    ("grounds", "field"),
    [
        (disclosure_pb2.Grounds(), "grounds.legal_basis"),
        (
            disclosure_pb2.Grounds(legal_basis="BECAUSE", purpose=disclosure_pb2.PURPOSE_ENFORCEMENT),
            "grounds.legal_basis",
        ),
        (
            disclosure_pb2.Grounds(legal_basis="STALKING_17_6", purpose=disclosure_pb2.PURPOSE_ENFORCEMENT),
            "grounds.legal_basis",
        ),
        (disclosure_pb2.Grounds(legal_basis="TAG_16_2"), "grounds.purpose"),
        (disclosure_pb2.Grounds(legal_basis="TAG_16_2", purpose=99), "grounds.purpose"),  # type: ignore[arg-type]
        (
            disclosure_pb2.Grounds(
                legal_basis="TAG_16_2", purpose=disclosure_pb2.PURPOSE_ENFORCEMENT, reference="두 단어"
            ),
            "grounds.reference",
        ),
        (
            disclosure_pb2.Grounds(
                legal_basis="TAG_16_2", purpose=disclosure_pb2.PURPOSE_ENFORCEMENT, reference=NUMBER
            ),
            "grounds.reference",
        ),
    ],
)
async def test_without_grounds_nothing_is_disclosed(
    client: Client, grounds: disclosure_pb2.Grounds, field: str
) -> None:
    before = rows(client.mesh)
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await read_wearer(client, MOJ_DESK, grounds)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in str(refusal.value.details()) and NUMBER not in str(refusal.value.details())
    assert rows(client.mesh) == before


async def test_a_role_without_permission_reads_nothing(client: Client) -> None:
    before = rows(client.mesh)
    for who in ("spiffe://vendor/acme", "spiffe://tandem/operator/one", NPA):
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await read_wearer(client, who)
        assert refusal.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert rows(client.mesh) == before


async def heads_in_the_stream(bus: Bus) -> list[ledger_pb2.LedgerHead]:
    async for messages in pull.read(bus, flow.LEDGER.name, 1):
        if messages[-1].pending == 0:
            return [ledger_pb2.LedgerHead.FromString(message.data) for message in messages]
    raise AssertionError("the stream ended")


async def test_a_signed_head_reaches_both_agencies_and_proves_the_ledger(client: Client, tmp_path: Any) -> None:
    await read_wearer(client, MOJ_DESK)
    signed = await client.disclosures.SignLedger(
        disclosure_pb2.SignLedgerRequest(), metadata=server.bearer(NPA, SECRET), timeout=10
    )
    assert signed.head.sequence == len(rows(client.mesh))
    await client.drained()
    heads = await heads_in_the_stream(client.bus)
    assert heads[-1] == signed.head
    for agency in (NPA, MOJ):
        watched: Any = client.disclosures.WatchLedgerHeads(
            disclosure_pb2.WatchLedgerHeadsRequest(), metadata=server.bearer(agency, SECRET), timeout=10
        )
        assert [(await watched.read()).head for _ in heads] == heads
        # The watcher also gets the next head as soon as it is signed.
        await read_wearer(client, MOJ_DESK)
        next_signed = await client.disclosures.SignLedger(
            disclosure_pb2.SignLedgerRequest(), metadata=server.bearer(agency, SECRET), timeout=10
        )
        assert (await watched.read()).head == next_signed.head
        watched.cancel()
        heads.append(next_signed.head)

    kept = tmp_path / "heads.ndjson"
    kept.write_text(
        "\n".join(
            json.dumps(
                {
                    "sequence": head.sequence,
                    "hash": head.hash.hex(),
                    "at_ms": head.at_ms,
                    "signature": head.signature.hex(),
                }
            )
            for head in heads
        )
    )
    database = client.mesh.database_url or str(client.mesh.data_dir / "registry.sqlite3")
    public_key = str(client.mesh.data_dir / "ledger.pub")
    assert (client.mesh.data_dir / "ledger.key").stat().st_mode & 0o777 == 0o600
    arguments = ("ledger", "verify", "--database", database, "--public-key", public_key, "--heads", str(kept))
    proven = tandem(*arguments)
    assert proven.returncode == 0, proven.stderr
    assert f"rows proven: {heads[-1].sequence}" in proven.stdout

    client.mesh.change("update ledger set who = 'x' || who where sequence = 1")
    broken = tandem(*arguments)
    client.mesh.change("update ledger set who = substr(who, 2) where sequence = 1")
    assert (broken.returncode, broken.stderr) == (1, "the ledger is broken at row 1: was changed\n")


async def test_a_disclosure_made_while_the_registry_is_down_is_in_the_ledger_once(mesh: RegistryMesh) -> None:
    share = ledger_pb2.Disclosure(
        disclosure_id="share-1",
        at_ms=1_700_000_000_000,
        who=MOJ_DESK,
        legal_basis="TAG_16_2",
        purpose="ENFORCEMENT",
        record_kind="WEARER",
        record_id="w-secret",
        order_id="o-secret",
        recipient=MOJ_DESK,
        expires_at_ms=1_700_000_600_000,
    )
    without_basis = ledger_pb2.Disclosure(disclosure_id="share-2", record_kind="WEARER")
    async with mesh.connected():
        mesh.service.kill()
    async with buses.connect(mesh.nats.url, "elsewhere") as bus:
        for n in range(2):
            subject = flow.disclosure_subject("geofence", share.disclosure_id)
            await bus.publish(subject, share.SerializeToString(), msg_id=f"try-{n}")
        await bus.publish(flow.disclosure_subject("geofence", "share-2"), without_basis.SerializeToString())
        mesh.service.start()
        async with mesh.connected() as client:
            async for messages in pull.read(bus, flow.DEAD_LETTERS.name, 1):
                assert [message.subject for message in messages] == [
                    "dead_letter.registry.registry-disclosures.DISCLOSURES.3"
                ]
                break
            await client.until("select 1 from ledger where disclosure_id = 'share-1'")
            shared = [row for row in rows(mesh) if row[1] == "SHARED"]
    assert shared == [(MOJ_DESK, "SHARED", "WEARER", "w-secret", "TAG_16_2", "share-1")]


async def test_names_numbers_and_addresses_are_in_no_file_and_no_log_line(client: Client) -> None:
    await read_wearer(client, MOJ)
    await read_person(client, NPA_DESK)
    snapshots = [snapshot.SerializeToString() for _, snapshot in await client.cases()]
    held = client.mesh.held()
    assert b"w-secret" in held and b"o-secret" in held and b"p-secret" in held
    plain = (
        NUMBER,
        NUMBER.replace("-", ""),
        WEARER_NAME,
        PERSON_NAME,
        BIRTH_DATE,
        PHONE,
        PHONE.replace("-", ""),
        ADDRESS,
    )
    for text in plain:
        for secret in (
            text.encode(),
            text.encode("utf-16-le"),
            text.encode("unicode_escape"),
            json.dumps(text).encode(),
        ):
            assert secret not in held
            assert not any(secret in snapshot for snapshot in snapshots)
