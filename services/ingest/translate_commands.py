"""Messages of COMMANDS as ingest reads them. Parsing is validation: the subject proves the publisher, and the content must agree."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from services.common import fields, flow
from services.common.errors import InvalidField
from tandem.common.v1 import command_pb2

NOTICE_IDS = "notice-"
"""How the ids of the warning leg's commands begin (dispatch/warning/sender.py)."""
_WARNING = flow.leg_user("warning")


def stored_command(subject: str, data: bytes) -> command_pb2.Command:
    """A command on `command.{by}.{command_id}`. Raises InvalidField where it can't be read, or isn't its publisher's to give.

    The warning leg gives notices and nothing else, under ids of its own: no desk's command can be replaced by one of its commands.
    """
    try:
        command = command_pb2.Command.FromString(data)
    except DecodeError:
        raise InvalidField("command", "isn't a tandem.common.v1.Command") from None
    fields.required_id("command_id", command.command_id)
    fields.required_id("device_id", command.device_id)
    _, by, *_ = (*subject.split("."), "")
    if subject != flow.command_subject(by, command.command_id):
        raise InvalidField("command_id", "isn't that of the subject")
    of_warning = by == _WARNING
    kind = command.instruction.WhichOneof("kind")
    if kind is None:
        raise InvalidField("instruction", "is missing")
    if (kind == "show_notice") is not of_warning:
        raise InvalidField("instruction", f"{kind} isn't for {by} to give")
    if command.command_id.startswith(NOTICE_IDS) is not of_warning:
        raise InvalidField("command_id", f"isn't one that {by} may give")
    if (command.issued_by == _WARNING) is not of_warning:
        raise InvalidField("issued_by", f"isn't anybody for whom {by} publishes")
    return command


def stored_step(subject: str, data: bytes) -> command_pb2.CommandStep:
    """A step on `command_step.{command_id}.{state}`. Raises InvalidField where it can't be read, or the subject says otherwise."""
    try:
        step = command_pb2.CommandStep.FromString(data)
    except DecodeError:
        raise InvalidField("step", "isn't a tandem.common.v1.CommandStep") from None
    fields.required_id("command_id", step.command_id)
    if step.state not in command_pb2.CommandState.values():
        raise InvalidField("state", "is unknown")
    state = command_pb2.CommandState.Name(step.state).removeprefix("COMMAND_STATE_")
    if subject != flow.command_step_subject(step.command_id, state):
        raise InvalidField("state", "isn't that of the subject")
    return step
