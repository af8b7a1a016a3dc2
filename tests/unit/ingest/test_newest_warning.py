"""Of the warnings to a device only the newest of each topic is sent, so that a phone that was off shows what is so now."""

from __future__ import annotations

from services.ingest.commands.states import CommandStates
from tandem.common.v1 import command_pb2

NOW_MS = 1_000_000
INSTRUCTION, MINISTRY = "instruction", "ministry"


def warning(command_id: str, topic: str, *, expires_ms: int = NOW_MS + 60_000) -> command_pb2.Command:
    notice = command_pb2.ShowNotice(warning_id=f"warning of {command_id}", topic=topic)
    return command_pb2.Command(
        command_id=command_id,
        device_id="app-1",
        instruction=command_pb2.Instruction(show_notice=notice),
        issued_at_ms=NOW_MS,
        expires_at_ms=expires_ms,
    )


def sent(states: CommandStates) -> list[str]:
    return [active.command.command_id for active in states.unexpired("app-1", NOW_MS)]


def test_twenty_warnings_of_an_hour_are_one_and_other_topics_and_commands_stay() -> None:
    states = CommandStates()
    locate = command_pb2.Command(
        command_id="locate",
        device_id="app-1",
        instruction=command_pb2.Instruction(locate_now=command_pb2.LocateNow()),
        issued_at_ms=NOW_MS,
        expires_at_ms=NOW_MS + 60_000,
    )
    for command in (warning("notice", MINISTRY), locate, *(warning(f"w{n}", INSTRUCTION) for n in range(20))):
        assert states.add(command, NOW_MS)
    assert sent(states) == ["notice", "locate", "w19"]


def test_an_older_warning_is_not_sent_after_the_newer_one_has_arrived() -> None:
    states = CommandStates()
    for name in ("older", "newer"):
        assert states.add(warning(name, INSTRUCTION), NOW_MS)
    received = command_pb2.CommandStep(command_id="newer", state=command_pb2.COMMAND_STATE_RECEIVED, at_ms=NOW_MS)
    assert states.apply(received)
    assert sent(states) == []


def test_a_receipt_of_an_older_warning_still_counts() -> None:
    states = CommandStates()
    for name in ("older", "newer"):
        assert states.add(warning(name, INSTRUCTION), NOW_MS)
    received = command_pb2.CommandStep(command_id="older", state=command_pb2.COMMAND_STATE_RECEIVED, at_ms=NOW_MS)
    assert states.apply(received)
    assert sent(states) == ["newer"]
