"""Her phone on a whole mesh: enrolled by a code, reporting, warned by push, answering, and shut out where it has no right.

Everything runs on one mesh, with the demo's people; her phone is a second device of the protected person.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import aiohttp
import grpc.aio
import pytest
import pytest_asyncio

from services.client.actors import DESKS
from services.common.messaging import flow
from services.common.words import ALERT_WORDS
from services.field.guard import CODE_BURST
from services.field.push import BODY
from tandem.dispatch.v1 import dispatch_pb2, unit_duty_pb2
from tests.support.common.mesh import PATIENCE_S, RunningMesh, running_mesh, tandem
from tests.support.field import phone_state, rights
from tests.support.field.phone import PushService, phone, position
from tests.support.field.scene import DURESS_CHOICE, Scene, scene_on, until
from tests.support.field.unit import UNHURRIED, station, unit_phone

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def push_service() -> PushService:
    return PushService()


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, push_service: PushService) -> Iterator[RunningMesh]:
    settings = {"TANDEM_PUSH_SERVICES": f"fcm.googleapis.com,{push_service.origin}", **UNHURRIED}
    with running_mesh(tmp_path_factory.mktemp("field") / "mesh", settings=settings) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(mesh: RunningMesh, push_service: PushService) -> AsyncIterator[Scene]:
    async with scene_on(mesh, push_service) as made:
        yield made


async def test_a_code_works_once_for_one_phone_and_each_refusal_is_stated(scene: Scene) -> None:
    async with phone(scene.url) as first, phone(scene.url) as second:
        assert (await first.notices()).content["error"] == "not_enrolled"
        code = await scene.code(scene.others)
        typed = code.replace("-", " ").lower()
        answer = await first.enrol(typed)
        assert answer.status == 200 and answer.content == {"enrolled": True, "interval_s": 15}
        cookie = answer.headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and scene.others not in cookie
        assert (await second.enrol(code))[:2] == (409, {"error": "code_used"})
        for foreign in ("AAAA-AAAA-AAAA", "", "\ud800", "x" * 5_000):
            assert (await second.enrol(foreign))[:2] == (404, {"error": "code_unknown"})
        replaced, newer = await scene.code(scene.others), await scene.code(scene.others)
        assert (await second.enrol(replaced))[:2] == (409, {"error": "code_used"})
        # The newer phone of a device ends the older.
        assert (await first.notices()).status == 200
        assert (await first.ask("POST", "/api/push", scene.push.address)).status == 200
        assert (await second.enrol(newer)).status == 200
        assert scene.push_addresses(scene.others) == []
        assert (await second.ask("POST", "/api/push", scene.push.address)).status == 200

        async def ended() -> bool:
            return bool((await first.report(position(1, 37.6, 127.2))).content.get("error") == "ended")

        await until(ended)
        assert (await first.notices())[:2] == (401, {"error": "ended"})
        assert (await first.ask("POST", "/api/leave", {})).status == 200
        assert scene.push_addresses(scene.others) == [scene.push.address["endpoint"]]
    printed = tandem("enrol", scene.others, "--dir", str(scene.mesh.folder))
    assert printed.returncode == 0 and printed.stdout.endswith(f"at {scene.url}\n")
    tag = tandem("enrol", scene.stage.plan.id("tag"), "--dir", str(scene.mesh.folder))
    assert tag.returncode == 2 and "belongs to the other agency" in tag.stderr


async def test_a_copied_cookie_is_worth_nothing_without_the_phone(scene: Scene) -> None:
    async with scene.enrolled(scene.others) as owner, phone(scene.url) as thief:
        thief.take_cookie(owner.cookie())
        assert (await thief.notices())[:2] == (401, {"error": "no_proof"})
        assert (await thief.report(position(1, 37.6, 127.2)))[:2] == (401, {"error": "no_proof"})
        # A proof is of one request, and of its time.
        proof = owner.proof("GET", "/api/push", b"")
        assert (await owner.ask("GET", "/api/notices", **{"X-Proof": proof})).content["error"] == "no_proof"
        owner.ahead_ms = 600_000
        late = await owner.notices()
        assert late.status == 401 and late.content["error"] == "clock" and late.content["now_ms"] > 0
        owner.ahead_ms = 0
        other_site = await owner.ask("POST", "/api/leave", {}, Origin="https://elsewhere.example")
        assert other_site[:2] == (403, {"error": "other_site"})
        assert (await owner.ask("POST", "/api/leave", {})).status == 200
        assert (await owner.notices()).content["error"] == "not_enrolled"


async def test_reports_are_stored_once_and_what_is_wrong_is_said_for_each(scene: Scene) -> None:
    async with scene.enrolled(scene.others) as hers:

        async def is_known() -> bool:  # ingest learns of a new token by the log of devices
            answer = await hers.report(position(0, 37.6, 127.2))
            return bool(answer.content["results"][0]["outcome"] == "stored")

        await until(is_known)
        good = position(1, 37.6, 127.2)
        wild, vague = position(2, 37.6, 127.2, at_ms=good["at_ms"] + 3_600_000), position(3, 37.6, 127.2, accuracy=5e5)
        answer = await hers.report(good, good | {"id": "r4"}, wild, vague)
        results = {result["id"]: result for result in answer.content["results"]}
        assert results["r1"]["outcome"] == results["r4"]["outcome"] == "stored"
        assert results["r2"]["outcome"] == "refused" and results["r2"]["reason"]
        assert results["r3"]["outcome"] == "refused" and results["r3"]["field"]
        for bad in ({"lat": 91}, {"lat": None}, {"lon": "x"}, {"at_ms": 1.5}, {"id": "a b"}, {"alarm": "fire"}):
            refused = await hers.report(good, good | {"id": "r5"} | bad)
            assert refused.status == 400 and refused.content["field"].startswith("reports[1].")
        assert (await hers.ask("POST", "/api/reports", {"reports": []})).status == 400
        assert (await hers.ask("POST", "/api/reports", {"reports": [good] * 51})).status == 400
        assert (await hers.ask("POST", "/api/reports", [1])).status == 400


async def test_the_state_of_her_phone_reaches_the_polices_desk_and_no_other(scene: Scene) -> None:
    await phone_state.reaches_the_polices_desk_alone(scene)


async def test_a_push_address_in_the_own_network_or_of_nobody_known_is_refused(scene: Scene) -> None:
    keys = scene.push.address
    async with scene.enrolled(scene.others) as hers:
        for endpoint in (
            "https://127.0.0.1/x",
            "https://localhost/x",
            "http://fcm.googleapis.com/x",
            "https://fcm.googleapis.com:8443/x",
            "https://fcm.googleapis.com@10.0.0.1/x",
            "https://10.0.0.1/x",
            "https://[::1]/x",
            "https://evil.example/x",
            "https://fcm.googleapis.com.evil.example/x",
            "http://127.0.0.1:7401/x",
            "https://[::1",
            "",
        ):
            answer = await hers.ask("POST", "/api/push", keys | {"endpoint": endpoint})
            assert answer.status == 400 and answer.content["field"] == "endpoint", endpoint
        for name in ("p256dh", "auth"):
            answer = await hers.ask("POST", "/api/push", keys | {name: "AAAA"})
            assert answer.status == 400 and answer.content["field"] == name


async def test_she_is_warned_by_push_and_her_answer_is_in_the_polices_chain(scene: Scene) -> None:
    async with scene.enrolled(scene.hers) as hers, scene.enrolled(scene.others) as other:
        assert len((await hers.ask("GET", "/api/push")).content["key"]) == 87
        assert (await hers.ask("POST", "/api/push", scene.push.address)).status == 200
        before = (await hers.notices()).content
        assert before["present"] is None and before["earlier"] == [] and not before["away"]
        waiting = asyncio.create_task(hers.notices(before["digest"], wait=True))
        await scene.stage.warn()
        content = (await waiting).content

        async def pushed() -> bool:
            return bool(scene.push.messages)

        await until(pushed)
        headers, body = scene.push.messages[0]
        assert (
            body == BODY
            and headers["Authorization"].startswith("vapid ")
            and headers["Content-Encoding"] == "aes128gcm"
        )
        notice = content["present"]
        assert (notice["who"], notice["where"]) == ("the person of your order", "within 2 km of you")
        assert notice["act"] == "Keep your phone with you." and notice["where"] in notice["text"]
        assert notice["language"] == "en" and not notice["is_over"] and notice["asks_answer"]
        assert notice["since_ms"] <= notice["sent_ms"] <= notice["repeated_ms"] <= content["now_ms"]
        assert content["earlier"] == [] and content["digest"] != before["digest"]

        # Receipts: of this phone alone, the first counts, and each answer looks the same.
        receipt = {"notice": notice["id"], "kind": "displayed"}
        foreign = await other.ask("POST", "/api/receipts", receipt)
        assert foreign[:2] == (404, {"error": "not_found"})
        assert (await other.notices()).content["present"] is None
        answers = [await hers.ask("POST", "/api/receipts", receipt)]
        displayed_ms = scene.stored(notice["id"])[1]
        answers.append(await hers.ask("POST", "/api/receipts", receipt))
        assert displayed_ms and scene.stored(notice["id"])[1] == displayed_ms
        for choice in (1, DURESS_CHOICE, 3, DURESS_CHOICE):
            answers.append(await hers.ask("POST", "/api/receipts", receipt | {"kind": "answered", "choice": choice}))
        assert {(answer.status, str(answer.content), answer.headers["Content-Length"]) for answer in answers} == {
            (200, "{}", "2")
        }
        for bad in ({"kind": "seen"}, {"choice": 9}, {"choice": "1"}, {"notice": "a b"}, {"kind": "answered"}):
            assert (await hers.ask("POST", "/api/receipts", receipt | bad)).status == 400
        assert (await hers.ask("POST", "/api/receipts", [receipt])).status == 400

        async def duress_at_the_police() -> bool:
            answer = await scene.clients.legs["police"].dispatch.ListIncidents(
                dispatch_pb2.ListIncidentsRequest(), metadata=scene.clients.identity(DESKS["police"])
            )
            return any("DURESS" in str(incident) for incident in answer.incidents)

        await until(duress_at_the_police)


async def test_a_nearer_ring_takes_the_place_of_the_instruction_and_an_ended_push_address_is_forgotten(
    scene: Scene,
) -> None:
    async with scene.enrolled(scene.hers) as hers:
        assert (await hers.ask("POST", "/api/push", scene.push.address)).status == 200
        scene.push.status, sent = 410, len(scene.push.messages)
        before = (await hers.notices()).content
        waiting = asyncio.create_task(hers.notices(before["digest"], wait=True))
        await scene.stage.notify()
        content = (await waiting).content
        assert content["present"]["act"] == "Be indoors, where you can lock the door."
        assert [notice["id"] for notice in content["earlier"]] == [before["present"]["id"]]

        async def forgotten() -> bool:
            return len(scene.push.messages) > sent and not scene.push_addresses(scene.hers)

        await until(forgotten)


async def test_after_a_silent_panic_nothing_leaves_for_her_phone_and_an_open_app_shows_what_follows(
    scene: Scene,
) -> None:
    async with scene.enrolled(scene.hers) as hers:
        assert (await hers.ask("POST", "/api/push", scene.push.address)).status == 200
        scene.push.status = 201

        async def panicked() -> bool:
            panic = {"id": "p1", "at_ms": position(0, 0, 0)["at_ms"], "alarm": "panic", "silent": True}
            answer = await hers.report(position(1, 37.636, 127.2165), panic)
            assert [result["id"] for result in answer.content["results"]] == ["p1", "r1"]
            return bool(answer.content["results"][0]["outcome"] == "stored")

        before = (await hers.notices()).content["present"]
        await until(panicked)
        await until(scene.offered_at_both)

        async def is_silent() -> bool:
            return bool(scene.warning_rows("select 1 from told where is_silent"))

        await until(is_silent)
        assert (await hers.notices()).content["present"]["id"] == before["id"], "no notice about the panic"
        pushed, sendings = len(scene.push.messages), scene.warning_rows(SENT)
        await scene.stage.respond()

        async def shown() -> bool:
            present = (await hers.notices()).content["present"]
            return bool(present["where"] == "within 100 m of you")

        await until(shown)
        assert (await hers.notices()).content["present"]["asks_answer"]
        assert len(scene.push.messages) == pushed and scene.warning_rows(SENT) == sendings
        assert {outcome for (outcome,) in scene.warning_rows(LAST_OUTCOMES)} == {"in app"}


SENT = "select count(*), count(distinct message_id) from sendings where outcome <> 'in app'"
"""What ever left for a phone: by gateway, or as a command."""
LAST_OUTCOMES = "select outcome from sendings join messages using (message_id) where past_ms is null"


async def test_a_link_opens_a_units_page_once_and_each_refusal_is_stated(scene: Scene) -> None:
    async with (
        station(scene) as police,
        unit_phone(scene) as first,
        unit_phone(scene) as second,
    ):
        await police.put("car-1")
        assert (await first.duty())[:2] == (401, {"error": "not_signed_in"})
        used = await police.link("car-1")
        signed_in = await first.sign_in(used)
        assert signed_in.status == 200 and signed_in.content["unit"] == "car-1"
        cookie = signed_in.headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and "Path=/api/unit" in cookie
        assert (await second.sign_in(used))[:2] == (409, {"error": "link_used"})
        foreign = used.replace("police.", "probation.")
        for code in (foreign, "police.x", "warning.x", "", "\ud800", "police." + "x" * 5_000):
            assert (await second.sign_in(code))[:2] == (404, {"error": "link_unknown"}), code
        replaced, newer = await police.link("car-1"), await police.link("car-1")
        assert (await second.sign_in(replaced))[:2] == (409, {"error": "link_used"})
        # The newer page of a unit ends the older; neither opens as her app, nor hers as a unit's.
        assert (await second.sign_in(newer)).status == 200
        assert (await second.client.ask("POST", "/api/unit/push", scene.push.address)).status == 200
        assert (await first.duty())[:2] == (401, {"error": "ended"})
        # What the older page still has changes nothing of the newer one.
        assert (await first.client.ask("GET", "/api/unit/push"))[:2] == (401, {"error": "ended"})
        other = scene.push.address | {"endpoint": f"{scene.push.origin}/send/older"}
        assert (await first.client.ask("POST", "/api/unit/push", other))[:2] == (401, {"error": "ended"})
        assert (await first.client.ask("POST", "/api/unit/leave", {})).status == 200
        assert scene.push_addresses("unit/police/car-1") == [scene.push.address["endpoint"]]
        assert (await second.client.notices())[:2] == (401, {"error": "not_enrolled"})
        # A copied cookie is worth nothing without the phone.
        async with unit_phone(scene) as thief:
            thief.client.take_cookie(second.client.cookie("unit"), "unit")
            assert (await thief.duty())[:2] == (401, {"error": "no_proof"})
        # A page from yesterday: the shift is over, and the roster says so at once.
        assert (await second.report(status="available", lat=37.6, lon=127.2)).status == 200
        reported = await police.reports("car-1")
        assert (reported.position.lat_deg, reported.position.lon_deg) == (37.6, 127.2)
        assert (await second.report(status="off")).status == 200
        assert (await second.client.ask("POST", "/api/unit/leave", {})).status == 200
        assert (await second.duty())[:2] == (401, {"error": "not_signed_in"})
        await police.put("car-old")
        async with unit_phone(scene, await police.link("car-old")) as yesterday:
            await police.put("car-old", shift_ms=-1_000)
            assert (await yesterday.duty())[:2] == (401, {"error": "shift_over"})
            assert (await yesterday.report(status="available"))[:2] == (401, {"error": "shift_over"})


async def test_a_unit_accepts_drives_arrives_and_closes_and_the_other_desk_sees_it(scene: Scene) -> None:
    async with station(scene) as police:
        await police.put("car-2", "car-3")
        for id_, lat in (("car-2", 37.640), ("car-3", 37.700)):
            await police.at(id_, lat, 127.2165)
        async with (
            unit_phone(scene, await police.link("car-2")) as car,
            unit_phone(scene, await police.link("car-3")) as next_car,
        ):
            scene.push.status, sent = 201, len(scene.push.messages)
            assert (await car.client.ask("POST", "/api/unit/push", scene.push.address)).status == 200
            await police.refuse_offers()
            task = await car.task("offered", "escalated")
            assert task["to"] in ("person", "place")

            async def pushed() -> bool:
                return len(scene.push.messages) > sent

            await until(pushed)
            assert scene.push.messages[-1][1] == BODY
            for bad in (
                {"offer": 0},
                {"assignment": ""},
                {"answer": "maybe"},
                {"answer": "closed", "cause": "x"},
                {"answer": "rejected"},
            ):
                assert (
                    await car.client.ask("POST", "/api/unit/answer", {**task, "answer": "accepted"} | bad)
                ).status == 400
            foreign = await next_car.answer(task, "accepted")
            assert foreign[:2] == (409, {"error": "nobody_has_it"}), "it wasn't asked, and nobody has accepted"
            assert task["open_until_ms"] > task["asked_ms"] and not task["with_desk"]
            targets = f"/api/unit/targets?incident={task['incident']}"
            assert (await car.client.ask("GET", targets))[:2] == (409, {"error": "not_accepted"})
            # The desk asks another one as well. Both see their offers, and the first acceptance wins.
            seen_by_desk = next(each for each in await police.own() if each.assignment_id == task["assignment"])
            await police.send(seen_by_desk, "car-3")
            other_offer = await next_car.task("offered", assignment=task["assignment"])
            assert other_offer["offer"] != task["offer"]
            assert other_offer["open_until_ms"] > other_offer["asked_ms"] >= task["asked_ms"]
            for answer in ("received", "accepted", "accepted"):
                assert (await car.answer(task, answer)).status == 200
            assert (await next_car.answer(other_offer, "accepted"))[:2] == (409, {"error": "another_unit_has_it"})
            ended = (await next_car.duty(task["assignment"])).content
            # The roster offers it the incident's other assignments meanwhile.
            assert task["assignment"] not in [each["assignment"] for each in ended["tasks"]]
            assert ended["ends"] == [{"assignment": task["assignment"], "reason": "another_unit_has_it"}]
            assert (await car.answer(task, "on_scene"))[:2] == (409, {"error": "step_left_out"})
            assert (await car.answer(task, "en_route")).status == 200
            # Who is sent to her sees her; who is sent to a place sees the wearer, who may come there.
            followed = scene.stage.person_id if task["to"] == "person" else scene.stage.wearer_id
            seen = await car.first_targets(task["incident"], followed)
            assert seen[-1]["subject"] == followed
            # A phone that comes again, after it lost its network, has one stream.
            async with car.client.streamed("GET", targets) as earlier, car.client.streamed("GET", targets) as later:
                assert (earlier.status, later.status) == (200, 200)
                with suppress(aiohttp.ClientError):
                    async with asyncio.timeout(PATIENCE_S):
                        while await earlier.content.readany():
                            pass

            async def in_ledger() -> bool:
                return any(row[0].endswith("/police/car-2") for row in scene.ledger_recipients())

            await until(in_ledger)
            raised = await car.client.ask("POST", "/api/unit/distress", {})
            assert raised[:2] == (200, {"other_desk": True})
            assert (await police.reports("car-2")).HasField("distress_at")
            async with station(scene, "probation") as probation:

                async def at_the_other_desk() -> bool:
                    answer = await scene.clients.legs["probation"].dispatch.ListIncidents(
                        dispatch_pb2.ListIncidentsRequest(), metadata=probation.desk
                    )
                    return any(each.HasField("distress_at") for i in answer.incidents for each in i.assignments)

                await until(at_the_other_desk)
            await police.duty.EndDistress(unit_duty_pb2.EndDistressRequest(unit_id="car-2"), metadata=police.desk)
            assert not (await police.reports("car-2")).HasField("distress_at")
            for answer in ("assured", "on_scene"):
                assert (await car.answer(task, answer)).status == 200, answer
            # Its shift ends while it is on the scene: its officers can still say so, and call for help.
            await police.put("car-2", shift_ms=-1_000)
            assert (await car.answer(task, "assured")).status == 200
            assert (await car.client.ask("POST", "/api/unit/distress", {})).status == 200
            await police.duty.EndDistress(unit_duty_pb2.EndDistressRequest(unit_id="car-2"), metadata=police.desk)
            await police.put("car-2")
            assert (await car.answer(task, "apprehended")).status == 200
            assert (await car.answer(task, "closed", cause="nobody_found")).status == 200
            content = (await car.duty(task["assignment"])).content
            assert content["tasks"] == [] and content["ends"] == [{"assignment": task["assignment"], "reason": "over"}]
            states = {each.assignment_id: each for each in await police.own()}
            closed = states[task["assignment"]]
            assert closed.state == dispatch_pb2.CLOSED and closed.close_cause == dispatch_pb2.NOBODY_FOUND
            assert closed.acknowledged_by == "spiffe://tandem/unit/police/car-2"
            with pytest.raises(grpc.aio.AioRpcError, match="car-2"):
                await police.duty.Assure(
                    unit_duty_pb2.AssureRequest(assignment_id="assign-car-2"), metadata=police.desk
                )


async def test_field_may_call_its_own_methods_and_no_stream_of_the_log(scene: Scene) -> None:
    assert "field" not in flow.USERS
    await rights.are_those_of_its_apps_alone(scene)


async def test_the_units_page_gets_the_words_of_the_common_table(scene: Scene) -> None:
    async with phone(scene.url) as client, client._session.get(f"{scene.url}/static/unit-ko.json") as answer:
        texts = await answer.json()
    assert texts["kind_panic"] == ALERT_WORDS["PANIC"][0] and texts["name"] == "출동"


async def test_every_answer_has_a_strict_policy_and_none_of_the_api_is_cached(scene: Scene) -> None:
    async with phone(scene.url) as client:
        for path in ("/static/en.json", "/manifest.webmanifest", "/static/icon.svg"):
            async with client._session.get(scene.url + path) as answer:
                assert answer.status == 200, path
                assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        for path in ("/static/..%2fsettings.py", "/static/../settings.py", "/static/x.json", "/api/nothing"):
            async with client._session.get(scene.url + path) as answer:
                assert answer.status == 404, path
        headers = (await client.notices()).headers
        assert headers["Cache-Control"] == "no-store" and headers["Server"] == "app"
        assert "'unsafe" not in headers["Content-Security-Policy"]


async def test_codes_cannot_be_guessed_at_speed(scene: Scene) -> None:
    async with phone(scene.url) as client:
        answers = [await client.enrol("AAAA-AAAA-AAAA") for _ in range(CODE_BURST + 1)]
        assert answers[-1].status == 429 and int(answers[-1].headers["Retry-After"]) > 0
    async with unit_phone(scene) as page:  # a station begins its shift behind one address, and nobody guesses 256 bits
        assert {(await page.sign_in("police.x")).status for _ in range(CODE_BURST + 1)} == {404}
