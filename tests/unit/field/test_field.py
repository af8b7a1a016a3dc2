"""Decisions of field: push addresses, rate limits, reports, the phone's proof and cookie."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from pydantic import ValidationError

from services.common.errors import InvalidField
from services.common.privacy.secret_keys import open_keys
from services.common.web.connections import RequestLimit, source_of
from services.field import credentials, domain
from services.field.credentials import PhoneCookies, PhoneSession, RequestProof, UsedProofs
from services.field.domain import DEFAULT_PUSH_SERVICES, check_endpoint, is_public
from services.field.push import PublicResolver, PushAddress, PushClient, PushKey, PushOutcome, outcome_of, parse_address
from services.field.settings import FieldSettings
from services.field.views import STATIC, page_file
from services.ingest.endpoints import phones
from tests.support.common.ports import free_port
from tests.support.field.phone import Point, PushService, Raw, base64url

NONCE = "AAECAwQFBgcICQoLDA0ODw"
BEGAN_MS = 1_795_603_655_000
SESSION = PhoneSession("phone-1", "person-1", "token", "key")
FRONTEND = Path(__file__).parents[3] / "services" / "field" / "frontend"
GOOD = {"id": "r1", "at_ms": 1_795_603_655_000, "lat": 37.5, "lon": 127.0, "accuracy": 12}


def named(device_id: str, endpoint: str, keys: Mapping[str, str], service: str) -> PushAddress:
    """The address that a phone names."""
    return parse_address(device_id, endpoint, keys["p256dh"], auth=keys["auth"], services=(service,), phone_key="key")


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://fcm.googleapis.com/fcm/send/x",
        "https://web.push.apple.com/x",
        "https://db5p.notify.windows.com:443/w/?token=x",
    ],
)
def test_known_push_services_are_accepted(endpoint: str) -> None:
    assert check_endpoint(endpoint, DEFAULT_PUSH_SERVICES) == endpoint


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://fcm.googleapis.com/x",
        "https://push.apple.com/x",
        "https://evilpush.apple.com.example/x",
        "https://fcm.googleapis.com:22/x",
        "https://user@fcm.googleapis.com/x",
        "https://fcm.googleapis.com\\@10.0.0.1/x",
        "https://10.0.0.1\\.push.apple.com/x",
        "https://10.0.0.1%2f.push.apple.com/x",
        "https://.push.apple.com/x",
        "https://169.254.169.254/latest",
        "https://fcm.googleapis.com/\nx",
        "https://fcm.googleapis.com:x/",
        "ftp://fcm.googleapis.com/x",
        "https://fcm.googleapis.com/" + "x" * 2_000,
        "",
    ],
)
def test_other_addresses_are_refused(endpoint: str) -> None:
    with pytest.raises(InvalidField):
        check_endpoint(endpoint, DEFAULT_PUSH_SERVICES)


def test_only_public_addresses_are_called() -> None:
    assert all(map(is_public, ("142.250.76.1", "2404:6800:4004::1")))
    for private in ("10.1.2.3", "127.0.0.1", "169.254.169.254", "192.168.0.1", "100.64.0.1", "::1", "fe80::1%eth0"):
        assert not is_public(private)
    for mapped in ("::ffff:10.0.0.1", "fc00::1", "0.0.0.1", "224.0.0.1", "ff02::1"):
        assert not is_public(mapped)


async def test_a_name_that_leads_into_the_own_network_is_not_called() -> None:
    resolver = PublicResolver()
    with pytest.raises(OSError, match="no public address"):
        await resolver.resolve("localhost", 443)
    await resolver.close()


async def test_a_push_service_that_is_away_is_tried_later_and_a_bad_key_never(tmp_path: Path) -> None:
    key, service = PushKey(tmp_path / "push.pem", "mailto:duty@police.example"), PushService()
    assert PushKey(tmp_path / "push.pem", "mailto:duty@police.example").public == key.public
    away = f"http://127.0.0.1:{free_port()}"
    keys = service.address
    async with aiohttp.ClientSession() as session:
        client = PushClient(session, key, (away,))
        address = named("d", f"{away}/x", keys, away)
        assert await client.send(address, 60) is PushOutcome.LATER
        narrowed = PushClient(session, key, DEFAULT_PUSH_SERVICES)
        assert await narrowed.send(address, 60) is PushOutcome.REFUSED
        redirecting = PushService()
        redirecting.status = 307
        async with redirecting.serving():
            moved = named("d", redirecting.address["endpoint"], redirecting.address, redirecting.origin)
            assert await PushClient(session, key, (redirecting.origin,)).send(moved, 60) is PushOutcome.REFUSED
            assert len(redirecting.messages) == 1


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(201, "sent"), (404, "gone"), (410, "gone"), (400, "refused"), (413, "refused"), (429, "later"), (503, "later")],
)
def test_what_a_push_service_says_is_understood(status: int, outcome: str) -> None:
    assert outcome_of(status).value == outcome


def test_requests_beyond_the_rate_wait_and_keys_dont_share_it() -> None:
    limit = RequestLimit(1.0, 3)
    assert [limit.wait_s("a", 100.0) for _ in range(4)] == [0, 0, 0, 1.0]
    assert limit.wait_s("b", 100.0) == 0 and limit.wait_s("a", 101.0) == 0
    full = RequestLimit(1.0, 3, max_keys=2)
    assert [full.wait_s(key, 0.0) for key in ("a", "b")] == [0, 0]
    assert full.wait_s("c", 0.0) > 0 and full.wait_s("a", 0.0) == 0 and full.wait_s("c", 10.0) == 0


def test_a_full_table_of_limits_is_searched_only_when_a_key_has_ended() -> None:
    full = RequestLimit(1.0, 3, max_keys=2)
    assert [full.wait_s(key, 0.0) for key in ("a", "b", "b")] == [0, 0, 0]  # a's place ends after 1 s, b's after 2 s
    table = full._due_s
    assert full.wait_s("c", 0.5) > 0 and full._due_s is not table
    table = full._due_s
    assert full.wait_s("c", 0.9) > 0 and full._due_s is table, "a search for each stranger holds up everybody"
    assert full.wait_s("c", 1.0) == 0 and full.wait_s("d", 1.0) > 0


def test_all_addresses_of_one_subscriber_count_as_one() -> None:
    assert source_of("203.0.113.7") == source_of("::ffff:203.0.113.7") == "203.0.113.7"
    assert source_of("2001:db8:1:2::1") == source_of("2001:db8:1:2:ffff::9") != source_of("2001:db8:1:3::1")
    assert source_of("fe80::1%eth0") == "fe80::/64" and source_of("") == ""


def test_panics_go_first_and_a_report_is_the_same_request_each_time() -> None:
    parsed = domain.parse_reports({"reports": [GOOD, {"id": "p", "at_ms": 5, "alarm": "panic"}]})
    assert [report.report_id for report in parsed] == ["p", "r1"] and parsed[0].is_panic
    assert parsed[0].form("d") == {"id": "d", "timestamp": "5", "alarm": "sos"}
    assert parsed[1].form("d") == parsed[1].form("d")
    assert parsed[1].form("d")["lat"] == "37.5" and "alarm" not in parsed[1].form("d")


@pytest.mark.parametrize(("value", "is_silent"), [(True, True), (False, False), (None, True), ("x", True)])
def test_a_silent_panic_says_so_to_ingest_and_no_value_refuses_it(value: object, is_silent: bool) -> None:
    [panic] = domain.parse_reports({"reports": [{"id": "p", "at_ms": 5, "alarm": "panic", "silent": value}]})
    assert panic.form("d").get("silent") == ("true" if is_silent else None)
    [battery] = domain.parse_reports({"reports": [{"id": "p", "at_ms": 5, "alarm": "battery_low", "silent": True}]})
    assert "silent" not in battery.form("d")


def test_each_alarm_that_the_app_sends_is_one_that_ingest_knows() -> None:
    [union] = re.findall(r"alarm\?: (.*);", (FRONTEND / "src" / "kept.ts").read_text())
    names = re.findall(r'"(\w+)"', union)
    parsed = domain.parse_reports({"reports": [{"id": name, "at_ms": 5, "alarm": name} for name in names]})
    sent = {report.form("d")["alarm"] for report in parsed}
    assert sent == {"sos", "lowBattery", "powerRestored"} and sent <= phones.ALARMS.keys()


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (None, "reports"),
        ([], "reports"),
        ({"reports": {}}, "reports"),
        ({"reports": [GOOD] * 51}, "reports"),
        ({"reports": [1]}, "reports[0]"),
        ({"reports": [GOOD | {"lat": float("nan")}]}, "reports[0].lat"),
        ({"reports": [GOOD | {"lat": 10**400}]}, "reports[0].lat"),
        ({"reports": [GOOD | {"lon": True}]}, "reports[0].lon"),
        ({"reports": [GOOD | {"at_ms": -1}]}, "reports[0].at_ms"),
        ({"reports": [GOOD | {"at_ms": 1 << 60}]}, "reports[0].at_ms"),
        ({"reports": [GOOD | {"id": ["x"]}]}, "reports[0].id"),
        ({"reports": [GOOD | {"alarm": ["panic"]}]}, "reports[0].alarm"),
    ],
)
def test_what_is_wrong_with_a_request_is_named(content: Any, field: str) -> None:
    with pytest.raises(InvalidField) as refused:
        domain.parse_reports(content)
    assert refused.value.field == field


def test_the_interval_is_the_smallest_that_is_asked_within_the_apps_bounds() -> None:
    def every(interval_s: int) -> dict[str, Any]:
        return {"instruction": {"report_every": {"interval_s": interval_s, "for_s": 60}}}

    assert domain.interval_s([]) is None
    assert domain.interval_s([every(60), every(10), {"instruction": {"vibrate": {}}}]) == 10
    assert domain.interval_s([every(1)]) == 5 and domain.interval_s([every(3_600)]) == 300
    assert domain.wants_position_now([{"instruction": {"locate_now": {}}}]) and not domain.wants_position_now(
        [every(9)]
    )


def test_a_proof_is_of_one_key_one_request_and_one_time() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    public = PushService().address["p256dh"]
    unsigned = RequestProof(5, NONCE, "")
    signed = credentials.statement("POST", "/api/reports", unsigned, body=b"{}")
    r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA256())))
    header = f"5.{NONCE}.{base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"
    own = base64url(key.public_key().public_bytes(Raw, Point))
    given = credentials.parse_proof(header)
    assert given is not None and given.at_ms == 5 and given.is_valid(own, signed)
    assert not given.is_valid(public, signed)
    for other in (
        credentials.statement("POST", "/api/reports", unsigned, body=b"{ }"),
        credentials.statement("POST", "/api/reports", unsigned._replace(nonce=NONCE[::-1]), body=b"{}"),
        credentials.statement("POST", "/api/reports", unsigned._replace(at_ms=6), body=b"{}"),
    ):
        assert not given.is_valid(own, other)
    for bad in ("AAAA", "====", f"{given.signature}A"):
        assert not given._replace(signature=bad).is_valid(own, signed)
    for bad in (
        "",
        "5",
        "5.",
        f"5.{NONCE}.",
        f"5.{NONCE[1:]}.AAAA",
        f"5.{NONCE}.!!",
        f"²{header}",
        header[1:],
        "x.y.z",
    ):
        assert credentials.parse_proof(bad) is None, bad
    for point in ("", "AAAA", base64url(b"\4" + bytes(64))):
        with pytest.raises(InvalidField):
            credentials.public_key(point)


def test_a_proof_is_accepted_once_while_its_time_is_valid() -> None:
    used, now_ms = UsedProofs(BEGAN_MS), BEGAN_MS + 60_000
    first = RequestProof(now_ms, NONCE, "")
    assert used.can_judge(first, now_ms) and not used.holds(first, "a")
    used.add(first, "a", now_ms)
    assert used.holds(first, "a") and used.holds(first._replace(signature="another"), "a")
    assert not used.holds(first, "b") and not used.holds(first._replace(nonce=NONCE[::-1]), "a")
    at_ms = now_ms
    while used.can_judge(first, at_ms):
        assert used.holds(first, "a"), "as long as its time is valid"
        at_ms += 1_000
        used.add(RequestProof(at_ms, NONCE, ""), "c", at_ms)
    assert at_ms > now_ms + credentials.MAX_SKEW_MS


def test_proofs_whose_time_is_over_take_no_memory() -> None:
    used = UsedProofs(BEGAN_MS)
    for number in range(1_000):
        at_ms = BEGAN_MS + number * 1_000
        used.add(RequestProof(at_ms, NONCE, ""), "a", at_ms)
    held = sum(used.holds(RequestProof(BEGAN_MS + number * 1_000, NONCE, ""), "a") for number in range(1_000))
    assert credentials.MAX_SKEW_MS <= held * 1_000 <= credentials.MAX_SKEW_MS + 2 * credentials.USED_INTERVAL_MS


def test_a_process_judges_no_proof_from_before_its_start() -> None:
    used = UsedProofs(BEGAN_MS)
    assert not used.can_judge(RequestProof(BEGAN_MS - 1, NONCE, ""), BEGAN_MS + 10)
    assert used.can_judge(RequestProof(BEGAN_MS, NONCE, ""), BEGAN_MS + 10)
    assert not used.can_judge(RequestProof(BEGAN_MS + credentials.MAX_SKEW_MS + 11, NONCE, ""), BEGAN_MS + 10)


def test_a_cookie_opens_by_its_keys_alone(tmp_path: Path) -> None:
    keys = open_keys(tmp_path / "cookies.key")
    sealed = PhoneCookies(keys).seal(SESSION)
    assert PhoneCookies(open_keys(tmp_path / "cookies.key")).open(sealed) == SESSION
    newer = PhoneCookies((*keys, bytes(32)))
    assert newer.open(sealed) == SESSION and PhoneCookies(keys).open(newer.seal(SESSION)) is None
    for bad in ("", "x", sealed[:-4], "²"):
        assert PhoneCookies(keys).open(bad) is None
    assert "person-1" not in sealed


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"public_origins": "app.example"}, "TANDEM_PUBLIC_ORIGINS"),
        ({"push_services": "https://x/"}, "TANDEM_PUSH_SERVICES"),
        ({"push_contact": "nobody"}, "TANDEM_PUSH_CONTACT"),
        ({"push_contact": "mailto:duty@police"}, "TANDEM_PUSH_CONTACT"),
        ({"push_contact": "https://police.example/contact"}, "TANDEM_PUSH_CONTACT"),
        ({"ingest_phones": "http://10.0.0.1:7433"}, "isn't loopback"),
        ({"ingest_phones": "https://ingest:7433"}, "TANDEM_INGEST_PHONES is an https:// address"),
        ({"ingest_phones": "ingest"}, "TANDEM_INGEST_PHONES"),
        ({"registry": "dns:///registry:7401"}, "TANDEM_REGISTRY"),
        ({"osrm_url": "http://10.0.0.1:5000"}, "TANDEM_OSRM_URL"),
    ],
)
def test_wrong_settings_are_refused_at_the_start(settings: dict[str, str], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        FieldSettings(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("contact", ["mailto:duty.desk+1@police.example", "https://police.example"])
def test_each_contact_that_the_settings_accept_can_sign_a_message(tmp_path: Path, contact: str) -> None:
    settings = FieldSettings(push_contact=contact)
    key = PushKey(tmp_path / "push.pem", settings.push_contact)
    assert key.headers("https://web.push.apple.com/x")["Authorization"].startswith("vapid ")


def test_both_languages_have_the_same_texts_and_the_app_uses_no_others() -> None:
    texts = {name: json.loads(page_file(STATIC / f"{name}.json")) for name in ("ko", "en")}
    assert texts["ko"].keys() == texts["en"].keys()
    assert all(text.strip() for by_name in texts.values() for text in by_name.values())
    sources = "".join(source.read_text() for source in (FRONTEND / "src").glob("*.ts"))
    used = {name for name in texts["en"] if name in sources}
    used |= {name for name in texts["en"] if f'"{name}"' in (FRONTEND / "public" / "index.html").read_text()}
    composed = {
        name for name in texts["en"] if name.startswith(("answer_", "refused_", "location_", "panic_", "to_", "after_"))
    }
    assert texts["en"].keys() == used | composed


def test_the_app_can_be_installed_and_says_nothing_by_its_name() -> None:
    manifest = json.loads((FRONTEND / "public" / "manifest.webmanifest").read_text())
    assert manifest["display"] == "standalone" and manifest["start_url"] == manifest["scope"] == "/"
    sizes = {icon["sizes"] for icon in manifest["icons"]}
    assert {"192x192", "512x512"} <= sizes
    for icon in manifest["icons"]:
        assert (FRONTEND / "public" / Path(icon["src"]).name).exists()
    assert manifest["name"] == manifest["short_name"] == "오늘"
