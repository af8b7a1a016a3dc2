"""A message to the wearer as a command of ingest: the contact's id, the same text for all, and no interval."""

from __future__ import annotations

from services.ingest.commands.api import REMINDER, _command
from services.ingest.commands.asks import FOLD
from services.ingest.commands.states import sets_interval
from tandem.common.v1 import sensing_pb2


def test_the_command_has_the_contacts_id_and_the_same_text_everywhere() -> None:
    made = []
    for number in (1, 2):
        request = sensing_pb2.SensingRequest(
            request_id=f"contact-{number}", device_id="tag", decided_at_ms=1_000, until_ms=121_000, sequence=number
        )
        request.remind_wearer.SetInParent()
        made.append(_command(request))
    assert [command.command_id for command in made] == ["contact-1", "contact-2"]
    assert made[0].instruction == made[1].instruction == REMINDER
    assert made[0].instruction.remind_wearer.vibrate_s and made[0].instruction.remind_wearer.text
    assert made[0].expires_at_ms == 121_000 and made[0].issued_by == FOLD and not sets_interval(made[0])
