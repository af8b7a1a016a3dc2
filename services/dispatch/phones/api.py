"""gRPC edge of the notices on protected persons' phones. The warning leg serves it; the other legs refuse it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from services.common import fields, times
from services.common.rpc.errors import InvalidField, NotFound, PermissionDenied, Unavailable
from services.dispatch.domain.leg import Leg
from services.dispatch.leg.api import Context
from services.dispatch.phones.access import PhoneAccess
from services.dispatch.phones.open_notices import ReadableNotice
from services.dispatch.warning.domain import ChannelId, ChannelKind, Notice, ReceiptKind
from tandem.dispatch.v1 import phone_notice_pb2, phone_notice_pb2_grpc

KINDS = {
    phone_notice_pb2.PHONE_DELIVERED: ReceiptKind.DELIVERED,
    phone_notice_pb2.PHONE_DISPLAYED: ReceiptKind.DISPLAYED,
    phone_notice_pb2.PHONE_ANSWERED: ReceiptKind.ACKNOWLEDGED,
}
CHOICES = (1, 2, 3)
_OVER = (Notice.OVER.value, Notice.MINISTRY_OVER.value)


class PhoneNoticeApi(phone_notice_pb2_grpc.PhoneNoticeServiceServicer):
    """PhoneNoticeService of one leg."""

    def __init__(self, leg: Leg) -> None:
        self._leg = leg
        self._access: PhoneAccess | None = None

    def connected(self, access: PhoneAccess) -> None:
        """Sets the notices of the leg, once they are open."""
        self._access = access

    async def WatchPhoneNotices(
        self, request: phone_notice_pb2.WatchPhoneNoticesRequest, context: Context
    ) -> AsyncIterator[phone_notice_pb2.WatchPhoneNoticesResponse]:
        """Streams an entry for each notice to a device."""
        async with aclosing(self._opened().notices.follow()) as due:
            async for notice in due:
                if notice is None:
                    yield phone_notice_pb2.WatchPhoneNoticesResponse()
                    continue
                yield phone_notice_pb2.WatchPhoneNoticesResponse(
                    notice_id=notice.notice_id,
                    device_id=notice.device_id,
                    expires_at=times.to_timestamp(notice.expires_ms),
                )

    async def ListPhoneNotices(
        self, request: phone_notice_pb2.ListPhoneNoticesRequest, context: Context
    ) -> phone_notice_pb2.ListPhoneNoticesResponse:
        """Lists the notices to a device that can be read."""
        notices = self._opened().notices
        device_id = fields.required_id("device_id", request.device_id)
        return phone_notice_pb2.ListPhoneNoticesResponse(notices=map(_to_proto, await notices.of_device(device_id)))

    async def RecordPhoneReceipt(
        self, request: phone_notice_pb2.RecordPhoneReceiptRequest, context: Context
    ) -> phone_notice_pb2.RecordPhoneReceiptResponse:
        """Records a receipt of a notice."""
        access = self._opened()
        device_id = fields.required_id("device_id", request.device_id)
        notice_id = fields.required_id("notice_id", request.notice_id)
        kind = KINDS.get(request.kind)
        if kind is None:
            raise InvalidField("kind", "must be PHONE_DELIVERED, PHONE_DISPLAYED or PHONE_ANSWERED")
        if (kind is ReceiptKind.ACKNOWLEDGED) != (request.choice in CHOICES) or request.choice not in (0, *CHOICES):
            raise InvalidField("choice", "must be 1, 2 or 3 with PHONE_ANSWERED, else 0")
        message = await access.store.message(notice_id)
        channel = ChannelId(ChannelKind.DEVICE, device_id)
        if message is None or not await access.store.was_sent_over(notice_id, channel):
            raise NotFound("notice_id: is no notice to this device")
        await access.record(message, kind, request.choice)
        return phone_notice_pb2.RecordPhoneReceiptResponse()

    def _opened(self) -> PhoneAccess:
        if not self._leg.policy.warns_persons:
            raise PermissionDenied(f"the {self._leg} leg warns nobody")
        if self._access is None:
            raise Unavailable("the warnings are being opened")
        return self._access


def _to_proto(notice: ReadableNotice) -> phone_notice_pb2.PhoneNotice:
    message = notice.message
    return phone_notice_pb2.PhoneNotice(
        notice_id=message.message_id,
        text=message.text,
        language=message.language,
        sent_at=times.to_timestamp(message.due_ms),
        expires_at=times.to_timestamp(notice.expires_ms),
        is_over=message.notice in _OVER,
    )
