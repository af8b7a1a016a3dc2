"""Channels that hand messages over: to gateways by a signed webhook, and to devices by a command.

A gateway is reached without NATS. No channel depends on another service.
"""

from __future__ import annotations

import json
from typing import Protocol

import aiohttp

from services.common import times
from services.common.clock import MeshClock
from services.common.messaging import flow, lost_publications
from services.common.messaging.bus import AlreadyStored, Bus
from services.common.messaging.lost_publications import SoleMessage
from services.common.retrying import retried
from services.common.rpc.errors import RetryableError
from services.dispatch.exchange.posting import post
from services.dispatch.exchange.receivers import Receiver
from services.dispatch.warning.contacts import ContactBook
from services.dispatch.warning.http import AnswerLinks
from services.dispatch.warning.store import WarningStore
from services.dispatch.warning.tables import MessageRow, Sending
from tandem.common.v1 import command_pb2

ISSUED_BY = "dispatch-warning"
"""Issuer of the commands to devices."""


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
        self._gateway, self._session, self._contacts, self._links = gateway, session, contacts, links

    async def hand_over(self, sending: Sending, message: MessageRow) -> str:
        """Posts a message, see Channel."""
        contact = await retried(lambda: self._contacts.of(message.person_id))
        if contact is None:
            return "the person has no readable contact any more"
        body = {
            "type": "tandem.warning.v1",
            "warning_id": message.message_id,
            "to": contact.handle,
            "language": message.language,
            "text": message.text,
            "silent": True,
            "expires_at": times.to_rfc3339(sending.expires_ms),
        }
        if self._links:
            body["answer_url"] = self._links.url(message.message_id)
        content = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        return await post(
            self._session, self._gateway, message.message_id, body=content, content_type="application/json"
        )


class DeviceChannel:
    """Channel to all devices, by commands. Ingest hands a command to its device at once, or at the device's next contact."""

    def __init__(self, mesh: WarningBus, clock: MeshClock, store: WarningStore, *, links: AnswerLinks | None) -> None:
        self._mesh, self._clock, self._store, self._links = mesh, clock, store, links

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

        Ingest restores only lost commands that it has read. Of the messages to a person only the newest is worth it: an older one would
        say what is no longer so. Without this the police would be told of a lost warning, and nobody of a lost all-clear, which awaits
        no receipt.
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
                )
            ),
            issued_at_ms=self._clock.now_ms(),
            expires_at_ms=sending.expires_ms,
            issued_by=ISSUED_BY,
            reference=message.incident_id,
        )
        subject = flow.command_subject(ISSUED_BY, command.command_id)
        return SoleMessage(subject, command.SerializeToString(), command.command_id)


class RemovedGateway:
    """Stands for a gateway that was removed from the settings while messages still waited for it. Every attempt fails."""

    async def hand_over(self, _sending: Sending, _message: MessageRow) -> str:
        """Returns the reason why the message can't be sent, see Channel."""
        return "the gateway is not configured any more"
