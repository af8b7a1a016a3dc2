"""Links by which units on the road accept an offer: a signed token in a URL, for one use within LINK_TTL_S.

Opening a link only shows a page, and the button on the page accepts the offer. Programs that preview links open them too.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import html
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from aiohttp import web
from prometheus_client import Counter

from services.common.clock import wall_us
from services.common.errors import FailedPrecondition, NotFound, PermanentError, RetryableError
from services.common.observability.telemetry import logger
from services.common.storage import stored_files
from services.common.web.server import served
from services.dispatch.domain.assignment import UNANSWERED
from services.dispatch.exchange.store import ExchangeStore, LinkAnswer
from services.dispatch.leg import translate
from services.dispatch.leg.service import LegService
from tandem.dispatch.v1 import dispatch_pb2

LINK_TTL_S = 900
"""Lifetime of a link, seconds."""
MAX_TOKEN_CHARS = 2_048
"""Maximum length of a token that is parsed. A genuine token has about 300 characters."""
_KEY_BYTES = 32
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Tandem</title><p>{text}</p>{form}</html>
"""
_FORM = '<form method="post"><button>Take it</button></form>'


@dataclass(frozen=True, slots=True)
class Token:
    """Content of a link."""

    leg: str
    assignment_id: str
    unit: str
    """Recipient of the link: the unit that is offered the assignment, or else the receiver."""
    expires_s: int
    """End of the link's validity (exclusive), wall clock, seconds since 1970 UTC."""
    nonce: str

    def is_sound(self) -> bool:
        """Whether each field has the right type; JSON may hold any type."""
        texts = (self.leg, self.assignment_id, self.unit, self.nonce)
        return all(type(text) is str for text in texts) and type(self.expires_s) is int


class InvalidLink(Exception):
    """Raised for an invalid link. `answer` is shown to the person who opened the link."""

    def __init__(self, answer: LinkAnswer) -> None:
        super().__init__(answer.text)
        self.answer = answer


class Links:
    """Creates and verifies the links of one leg."""

    def __init__(self, leg: str, key: bytes, base_url: str) -> None:
        self._leg = leg
        self._key = key
        self._base_url = base_url.rstrip("/")

    def url(self, receiver: str, nonce: str, step: dispatch_pb2.Step) -> str:
        """Returns the link that accepts the offer of a step; empty if the step offers nothing."""
        asked = translate.unit_of_step(step)
        is_asked = any(
            offer.choice.unit_id == asked and offer.state == dispatch_pb2.UNIT_ASKED
            for offer in step.assignment.unit_offers
        )
        if not is_asked and step.assignment.state not in [int(state) for state in UNANSWERED]:
            return ""
        expires_s = wall_us() // 1_000_000 + LINK_TTL_S
        unit = asked or receiver
        token = Token(
            leg=self._leg, assignment_id=step.assignment.assignment_id, unit=unit, expires_s=expires_s, nonce=nonce
        )
        return f"{self._base_url}/acknowledge/{self.write(token)}"

    def write(self, token: Token) -> str:
        """Encodes a token for a URL."""
        content = json.dumps(asdict(token), sort_keys=True, separators=(",", ":")).encode()
        return f"{_text(content)}.{_text(self._mac(content))}"

    def read(self, text: str, now_s: int) -> Token:
        """Decodes the token of a URL. Raises InvalidLink if the token is forged, has expired or is another leg's."""
        forged = InvalidLink(LinkAnswer(403, "This link isn't one of ours."))
        content = self._signed_content(text)
        if content is None:
            raise forged
        try:
            token = Token(**json.loads(content))
        except (ValueError, TypeError, RecursionError):
            raise forged from None
        # Accept only the exact output of `write`: another version of this program may have signed other texts with the same key.
        if not token.is_sound() or self.write(token) != text:
            raise forged
        if token.leg != self._leg:
            raise InvalidLink(LinkAnswer(403, "This link is another leg's."))
        if now_s >= token.expires_s:
            raise InvalidLink(LinkAnswer(410, "This link has expired. Call your desk."))
        return token

    def _signed_content(self, text: str) -> bytes | None:
        """Returns the content of a URL's token if its MAC is right, else None. Content without a valid MAC is never parsed."""
        if len(text) > MAX_TOKEN_CHARS:
            return None
        encoded, _, encoded_mac = text.partition(".")
        content, mac = _bytes(encoded), _bytes(encoded_mac)
        if content is None or mac is None or not hmac.compare_digest(mac, self._mac(content)):
            return None
        return content

    def _mac(self, content: bytes) -> bytes:
        return hmac.new(self._key, b"tandem link\n" + content, hashlib.sha256).digest()


class LinkEndpoint:
    """HTTP endpoint of the links."""

    def __init__(self, leg: LegService, store: ExchangeStore, links: Links) -> None:
        self._leg = leg
        self._store = store
        self._links = links

    @asynccontextmanager
    async def served(
        self, host: str, port: int, tls: tuple[Path, Path] | None, *, closed: Counter
    ) -> AsyncIterator[int]:
        """Serves on a port, and yields the bound port. `closed` counts connections closed because of their peers."""
        path = "/acknowledge/{token}"
        routes = [web.get(path, self._show), web.post(path, self._accept)]
        async with served("links", routes, host, port=port, closed=closed, tls=tls) as bound:
            yield bound

    async def _show(self, request: web.Request) -> web.Response:
        try:
            token = self._links.read(request.match_info["token"], wall_us() // 1_000_000)
            used = await self._store.used(token.nonce)
            row = await self._leg.store.assignment(token.assignment_id)
        except InvalidLink as refused:
            return _page(refused.answer)
        except RetryableError:
            return _page(_LATER)
        exercise = row is not None and translate.stored_assignment(row).exercise
        asks = "This is an exercise: nobody has to go." if exercise else "Somebody has to go."
        return _page(used) if used else _page(LinkAnswer(200, f"{asks} Do you take it?"), _FORM)

    async def _accept(self, request: web.Request) -> web.Response:
        try:
            token = self._links.read(request.match_info["token"], wall_us() // 1_000_000)
            return _page(await self._answer(token))
        except InvalidLink as refused:
            return _page(refused.answer)
        except RetryableError:
            return _page(_LATER)

    async def _acknowledge(self, token: Token) -> None:
        """Accepts for the unit that the link was made for, or for the desk if the link went to a receiver. Raises NotFound and
        FailedPrecondition."""
        row = await self._leg.store.assignment(token.assignment_id)
        if row is None:
            raise NotFound(f"no assignment {token.assignment_id}")
        assignment, by = translate.stored_assignment(row), f"link/{token.unit}"
        offers = {offer.choice.unit_id: offer.offer_number for offer in assignment.unit_offers}
        if token.unit in offers:
            await self._leg.acknowledge(token.assignment_id, by, offers[token.unit], unit_id=token.unit)
            return
        if assignment.choice.unit_id:
            raise FailedPrecondition("somebody else has been asked since")
        # Without the number, an offer that goes to another unit meanwhile would be taken.
        await self._leg.acknowledge(token.assignment_id, by, assignment.offer_number)

    async def _answer(self, token: Token) -> LinkAnswer:
        """Accepts the offer on the first use of a link. Each later use gets the same answer without any effect."""
        used = await self._store.used(token.nonce)
        if used:
            return used
        try:
            await self._acknowledge(token)
            answer = LinkAnswer(200, "You have taken it.")
        except NotFound:
            answer = LinkAnswer(404, "There is no such assignment. Call your desk.")
        except PermanentError as error:
            answer = LinkAnswer(409, f"It can't be taken: {error.reason}. Call your desk.")
        await self._store.use(token.nonce, answer)
        logger().info("link_used", assignment_id=token.assignment_id, unit=token.unit, status=answer.status)
        return answer


_LATER = LinkAnswer(503, "It wasn't taken: try again, or call your desk.")


def open_key(path: Path) -> bytes:
    """Reads the key of a leg's links, and creates it at the first start, readable by its owner only.

    Raises FailedPrecondition if the file is damaged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        stored_files.write_once(path, os.urandom(_KEY_BYTES))
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise FailedPrecondition(f"{path} doesn't hold a key of {_KEY_BYTES} bytes")
    return key


def _page(answer: LinkAnswer, form: str = "") -> web.Response:
    text = _PAGE.format(text=html.escape(answer.text), form=form)
    return web.Response(status=answer.status, text=text, content_type="text/html", headers=HEADERS)


def _bytes(text: str) -> bytes | None:
    """Decodes URL-safe base64 exactly as `_text` writes it; None for any other text."""
    try:
        data = base64.b64decode((text + "=" * (-len(text) % 4)).encode("ascii"), altchars=b"-_", validate=True)
    except ValueError:
        return None
    return data if _text(data) == text else None


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
