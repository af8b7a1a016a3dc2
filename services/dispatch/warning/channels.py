"""Channels that hand messages over, and the HTTP endpoint for the receipts that come back.

Messages go to gateways by a signed webhook, and to devices by a command. A gateway is reached without NATS. No channel depends on
another service. A gateway confirms the delivery of a message, and the person confirms that she has seen it.

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
from typing import Protocol

import aiohttp
from aiohttp import web
from prometheus_client import Counter

from services.common import fields, times
from services.common.clock import MeshClock, wall_us
from services.common.errors import InvalidField, RetryableError
from services.common.messaging import flow, lost_publications
from services.common.messaging.bus import AlreadyStored, Bus
from services.common.messaging.lost_publications import SoleMessage
from services.common.observability.telemetry import logger
from services.common.privacy import secret_keys
from services.common.retrying import retried
from services.common.web.receivers import Receiver, post
from services.common.web.server import body_of, served
from services.dispatch.exchange.links import HEADERS, InvalidLink, Links, Token
from services.dispatch.exchange.store import LinkAnswer
from services.dispatch.warning import wording
from services.dispatch.warning.domain import ChannelId, ChannelKind, MessageKind, ReceiptKind
from services.dispatch.warning.receipts import ReceiptStore
from services.dispatch.warning.store import ContactBook, WarningStore
from services.dispatch.warning.tables import MessageRow, Sending
from services.dispatch.warning.wording import Language
from tandem.common.v1 import command_pb2

ISSUED_BY = "dispatch-warning"
"""Issuer of the commands to devices."""
ANSWER_LINK_TTL_S = 86_400
"""Lifetime of an answer link, seconds: an instruction may last for hours, and her last message has the link."""
_GATEWAY_RECEIPTS = {receipt.value: receipt for receipt in (ReceiptKind.DELIVERED, ReceiptKind.DISPLAYED)}
"""Receipts that a gateway may send, by name. Only the answer link proves that the person has answered."""
_CHOICES = ("1", "2", "3")
_GONE = LinkAnswer(404, "There is no such message.")
_PATH = "/notice/{token}"
_PAGE = """<!doctype html><html lang="{language}"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>&#8203;</title><p>{text}</p>{form}</html>
"""
_BUTTON = '<button name="choice" value="{value}">{label}</button> '


class WarningBus:
    """Holds the connection to NATS. Warnings over gateways are sent without it too."""

    def __init__(self) -> None:
        self.bus: Bus | None = None
        """The connection to NATS; None while there is none."""


class Channel(Protocol):
    """A means of handing a message over to a person."""

    async def hand_over(self, sending: Sending, message: MessageRow) -> str:
        """Attempts to hand a message over. Returns the reason for the failure; empty on success."""


class GatewayChannel:
    """A gateway, with an HTTP session of its own: a hanging gateway mustn't use up the connections of another."""

    def __init__(
        self, gateway: Receiver, session: aiohttp.ClientSession, contacts: ContactBook, *, links: AnswerLinks | None
    ) -> None:
        self._gateway = gateway
        self._session = session
        self._contacts = contacts
        self._links = links

    async def hand_over(self, sending: Sending, message: MessageRow) -> str:
        """Posts a message, see Channel."""
        contact = await retried(lambda: self._contacts.of(message.person_id))
        if contact is None:
            return "the person has no readable contact any more"
        body = {
            "type": "tandem.warning.v1",
            "warning_id": message.message_id,
            "repetition": sending.repetition,
            "topic": _topic_of(message),
            "to": contact.handle,
            "language": message.language,
            "text": message.text,
            "who": message.who_text,
            "where": message.where_text,
            "act": message.act_text,
            "silent": True,
            "expires_at": times.to_rfc3339(sending.expires_ms),
        }
        if self._links:
            body["answer_url"] = self._links.url(message.message_id)
        content = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        id_ = f"{message.message_id}.{sending.repetition}" if sending.repetition else message.message_id
        return await post(self._session, self._gateway, id_, body=content, content_type="application/json")


class DeviceChannel:
    """Channel to all devices, by commands. Ingest hands a command to its device at once, or at the device's next contact."""

    def __init__(self, mesh: WarningBus, clock: MeshClock, store: WarningStore, *, links: AnswerLinks | None) -> None:
        self._mesh = mesh
        self._clock = clock
        self._store = store
        self._links = links

    async def hand_over(self, sending: Sending, message: MessageRow) -> str:
        """Publishes a message as a command, see Channel."""
        bus = self._mesh.bus
        if bus is None:
            return "no connection to NATS"
        subject, payload, _ = self._command(sending, message)
        try:
            await bus.publish(subject, payload, expected_last=0)
        except AlreadyStored:
            return ""
        except RetryableError as error:
            return error.reason
        return ""

    async def keep_restored(self, bus: Bus) -> None:
        """Republishes commands that COMMANDS has lost before their device had them, until cancelled.

        Ingest restores only lost commands that it has read. Of the messages to a person only the present one is worth it: an older one
        would say what is no longer so. Without this the police would be told of a lost warning, and nobody of a lost all-clear, which
        awaits no receipt.
        """
        await retried(lambda: lost_publications.keep_restored(bus, flow.COMMANDS.name, self._page))

    async def _page(self, skipped: int, limit: int) -> list[SoleMessage]:
        unconfirmed = await self._store.unconfirmed(self._clock.now_ms(), skipped, limit)
        return [self._command(sending, message) for sending, message in unconfirmed]

    def _command(self, sending: Sending, message: MessageRow) -> SoleMessage:
        command = command_pb2.Command(
            command_id=sending.command_id,
            device_id=sending.channel.name,
            instruction=command_pb2.Instruction(
                show_notice=command_pb2.ShowNotice(
                    warning_id=message.message_id,
                    text=message.text,
                    language=message.language,
                    answer_url=self._links.url(message.message_id) if self._links else "",
                    topic=_topic_of(message),
                )
            ),
            issued_at_ms=self._clock.now_ms(),
            expires_at_ms=sending.expires_ms,
            issued_by=ISSUED_BY,
            reference=message.incident_id,
        )
        subject = flow.command_subject(ISSUED_BY, command.command_id)
        return SoleMessage(subject, command.SerializeToString(), command.command_id)


def _topic_of(message: MessageRow) -> str:
    """What a message is about. Of the messages of one topic, a gateway or device keeps only the newest for a phone that is off."""
    kind = message.message_kind
    if message.ground:
        return "ministry"
    return "phone" if kind is MessageKind.PHONE_SILENT else "instruction"


class RemovedGateway:
    """Stands for a gateway that was removed from the settings while messages still waited for it. Every attempt fails."""

    async def hand_over(self, _sending: Sending, _message: MessageRow) -> str:
        """Returns the reason why the message can't be sent, see Channel."""
        return "the gateway is not configured any more"


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
        self._store = store
        self._receipts = receipts
        self._clock = clock
        self._links = links
        self._contacts = contacts
        self._gateways = gateways
        self._wake = wake

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
        labels = zip(_CHOICES, wording.BUTTONS[language], strict=True)
        buttons = "".join(_BUTTON.format(value=value, label=html.escape(label)) for value, label in labels)
        return _page(200, language, wording.ASKED[language], form=f'<form method="post">{buttons}</form>')

    async def _answer(self, request: web.Request) -> web.Response:
        try:
            message = await self._message_of_link(request)
            await body_of(request)
            form = await request.post()
            choice, event = str(form.get("choice", "")), str(form.get("event", ""))
            if choice in _CHOICES and not event:
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
                if secret_keys.is_genuine(gateway.secrets, request.headers, body, now_s=time.time())
            ),
            None,
        )
        if gateway is None:
            return web.json_response(
                {"field": secret_keys.SIGNATURE_HEADER, "reason": "is no valid recent signature of a gateway"},
                status=403,
            )
        try:
            receipt = json.loads(body)
            message_id, status = fields.required_id("warning_id", str(receipt["warning_id"])), str(receipt["status"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return web.json_response({"field": "warning_id", "reason": "or status is missing"}, status=400)
        except InvalidField as error:
            return web.json_response({"field": error.field, "reason": error.reason}, status=400)
        if status not in _GATEWAY_RECEIPTS:
            return web.json_response({"field": "status", "reason": "must be delivered or displayed"}, status=400)
        try:
            message = await self._store.message(message_id)
            if message is None or not await self._store.was_sent_over(
                message_id, ChannelId(ChannelKind.GATEWAY, gateway.name)
            ):
                return web.json_response({"field": "warning_id", "reason": "is no warning of this gateway"}, status=404)
            await self._note(message, _GATEWAY_RECEIPTS[status])
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
