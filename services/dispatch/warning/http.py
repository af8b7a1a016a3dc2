"""HTTP endpoint for receipts: a gateway confirms the delivery of a message, and the person confirms that she has seen it.

The person has three answers of one word each. The request and the page afterwards are the same for each choice and each repetition.
One of the answers may be the duress choice, which means that somebody else controls the answer. The duress choice is agreed with each
person and stored in the sealed contact.
"""

from __future__ import annotations

import html
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web
from prometheus_client import Counter

from services.common import fields
from services.common.clock import MeshClock, wall_us
from services.common.observability.telemetry import logger
from services.common.privacy import signing
from services.common.rpc.errors import InvalidField, RetryableError
from services.common.web.server import body_of, served
from services.dispatch.exchange.links import HEADERS, InvalidLink, Links, Token
from services.dispatch.exchange.receivers import Receiver
from services.dispatch.exchange.store import LinkAnswer
from services.dispatch.warning import wording
from services.dispatch.warning.contacts import ContactBook
from services.dispatch.warning.domain import ChannelId, ChannelKind, ReceiptKind
from services.dispatch.warning.receipts import ReceiptStore
from services.dispatch.warning.store import WarningStore
from services.dispatch.warning.tables import MessageRow
from services.dispatch.warning.wording import Language

ANSWER_LINK_TTL_S = 3_600
"""Lifetime of an answer link, seconds."""
GATEWAY_RECEIPTS = {receipt.value: receipt for receipt in (ReceiptKind.DELIVERED, ReceiptKind.DISPLAYED)}
"""Receipts that a gateway may send, by name. Only the answer link proves that the person has answered."""
CHOICES = ("1", "2", "3")
_GONE = LinkAnswer(404, "There is no such message.")
_PATH = "/notice/{token}"
_PAGE = """<!doctype html><html lang="{language}"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>&#8203;</title><p>{text}</p>{form}</html>
"""
_BUTTON = '<button name="choice" value="{value}">{label}</button> '


class AnswerLinks:
    """Links by which persons answer. A link is signed, so it needs no login, and it names nothing but the message."""

    def __init__(self, key: bytes, base_url: str) -> None:
        self._links, self._base_url = Links("warning", key, base_url), base_url.rstrip("/")

    def url(self, message_id: str) -> str:
        """Returns the link that answers a message, valid for ANSWER_LINK_TTL_S."""
        token = Token(
            leg="warning",
            assignment_id=message_id,
            unit="",
            expires_s=wall_us() // 1_000_000 + ANSWER_LINK_TTL_S,
            nonce=message_id,
        )
        return self._base_url + _PATH.format(token=self._links.write(token))

    def read(self, text: str) -> str:
        """Returns the id of the message that a link answers. Raises InvalidLink if the link is forged or has expired."""
        return self._links.read(text, wall_us() // 1_000_000).assignment_id


class AnswerEndpoint:
    """Serves answer links, and accepts receipts of gateways."""

    def __init__(
        self,
        store: WarningStore,
        receipts: ReceiptStore,
        clock: MeshClock,
        *,
        links: AnswerLinks,
        contacts: ContactBook,
        gateways: Sequence[Receiver],
        wake: Callable[[], None],
    ) -> None:
        self._store, self._receipts, self._clock = store, receipts, clock
        self._links, self._contacts, self._gateways, self._wake = links, contacts, gateways, wake

    @asynccontextmanager
    async def served(
        self, host: str, port: int, tls: tuple[Path, Path] | None, *, closed: Counter
    ) -> AsyncIterator[int]:
        """Serves on a port, and yields the bound port. `closed` counts connections closed because of their peers."""
        routes = [web.get(_PATH, self._show), web.post(_PATH, self._answer), web.post("/receipts", self._receipt)]
        async with served("answers", routes, host, port=port, closed=closed, tls=tls) as bound:
            yield bound

    async def _show(self, request: web.Request) -> web.Response:
        # Opening the page is no receipt: programs that preview links open it too.
        try:
            message = await self._message_of_link(request)
        except InvalidLink as refused:
            return _refused(refused)
        except RetryableError:
            return _page(503, Language.KOREAN, "")
        language = _language(message)
        labels = zip(CHOICES, wording.BUTTONS[language], strict=True)
        buttons = "".join(_BUTTON.format(value=value, label=html.escape(label)) for value, label in labels)
        return _page(200, language, wording.ASKED[language], form=f'<form method="post">{buttons}</form>')

    async def _answer(self, request: web.Request) -> web.Response:
        try:
            message = await self._message_of_link(request)
            await body_of(request)
            form = await request.post()
            choice, event = str(form.get("choice", "")), str(form.get("event", ""))
            if choice in CHOICES and not event:
                await self._note(
                    message, ReceiptKind.ACKNOWLEDGED, await self._contacts.is_duress(message.person_id, int(choice))
                )
            elif event == "displayed" and not choice:
                await self._note(message, ReceiptKind.DISPLAYED)
            else:
                return web.json_response(
                    {"field": "choice", "reason": "must be 1, 2 or 3, or event displayed"}, status=400
                )
        except InvalidLink as refused:
            return _refused(refused)
        except RetryableError:
            return _page(503, Language.KOREAN, "")
        language = _language(message)
        return _page(200, language, wording.ANSWERED[language])

    async def _message_of_link(self, request: web.Request) -> MessageRow:
        message = await self._store.message(self._links.read(request.match_info["token"]))
        if message is None:
            raise InvalidLink(_GONE)
        return message

    async def _note(self, message: MessageRow, receipt: ReceiptKind, duress: bool = False) -> None:
        await self._receipts.put(message, receipt, self._clock.now_ms(), duress=duress)
        self._wake()
        logger().info("warning_receipt", message_id=message.message_id, receipt=receipt.value)  # never log the choice

    async def _receipt(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        gateway = next(
            (
                gateway
                for gateway in self._gateways
                if signing.is_genuine(gateway.secrets, request.headers, body, now_s=time.time())
            ),
            None,
        )
        if gateway is None:
            return web.json_response(
                {"field": signing.SIGNATURE_HEADER, "reason": "is no valid recent signature of a gateway"}, status=403
            )
        try:
            receipt = json.loads(body)
            message_id, status = fields.required_id("warning_id", str(receipt["warning_id"])), str(receipt["status"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return web.json_response({"field": "warning_id", "reason": "or status is missing"}, status=400)
        except InvalidField as error:
            return web.json_response({"field": error.field, "reason": error.reason}, status=400)
        if status not in GATEWAY_RECEIPTS:
            return web.json_response({"field": "status", "reason": "must be delivered or displayed"}, status=400)
        try:
            message = await self._store.message(message_id)
            if message is None or not await self._store.was_sent_over(
                message_id, ChannelId(ChannelKind.GATEWAY, gateway.name)
            ):
                return web.json_response({"field": "warning_id", "reason": "is no warning of this gateway"}, status=404)
            await self._note(message, GATEWAY_RECEIPTS[status])
        except RetryableError:
            return web.json_response({"reason": "the receipt was not stored: send it again"}, status=503)
        return web.Response(status=204)


def _language(message: MessageRow) -> Language:
    return Language(message.language) if message.language else Language.KOREAN


def _refused(refused: InvalidLink) -> web.Response:
    # The page says nothing about desks or incidents: anybody may hold the telephone.
    return _page(refused.answer.status, Language.KOREAN, "")


def _page(status: int, language: Language, text: str, *, form: str = "") -> web.Response:
    page = _PAGE.format(language=language.value, text=html.escape(text), form=form)
    return web.Response(status=status, text=page, content_type="text/html", headers=HEADERS)
