"""Channels and pending updates keep the spelling of the database."""

from __future__ import annotations

import pytest

from services.dispatch.domain.enums import WarningFlag
from services.dispatch.warning.domain import ChannelId, ChannelKind
from services.dispatch.warning.tables import Sending, leg_update_of, sending_of, sending_values, sendings


@pytest.mark.parametrize(
    ("text", "channel"),
    [
        ("gateway/sms", ChannelId(ChannelKind.GATEWAY, "sms")),
        ("device/app-1", ChannelId(ChannelKind.DEVICE, "app-1")),
        ("device/a/b", ChannelId(ChannelKind.DEVICE, "a/b")),
    ],
)
def test_a_sending_is_stored_under_the_text_of_its_channel(text: str, channel: ChannelId) -> None:
    sending = Sending("m1", channel, repetition=1, command_id="c1", tries=2, next_ms=3, expires_ms=4, outcome="")
    values = sending_values(sending)
    assert ChannelId.parse(text) == channel and values["way"] == text
    assert sending_of([values[column.name] for column in sendings.c]) == sending


def test_a_text_that_names_no_kind_of_channel_is_refused() -> None:
    for text in ("", "sms", "letter/a"):
        with pytest.raises(ValueError, match="ChannelKind"):
            ChannelId.parse(text)


@pytest.mark.parametrize("flag", [None, *WarningFlag])
def test_a_pending_update_is_a_receipt_or_a_flag(flag: WarningFlag | None) -> None:
    update = leg_update_of((1, "m1", "i1", "p1", "o1", "a1", 7, 0, flag.name if flag else "receipt", 5))
    assert update.flag is flag and update.what == (flag.name if flag else "receipt")
