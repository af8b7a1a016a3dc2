"""A wearer who stays near a protected person: the decision on the log and the warning leg together, minute by minute."""

from __future__ import annotations

from pathlib import Path

from services.dispatch.warning import translate
from services.dispatch.warning.domain import InstructedAct, MessageKind
from services.geofence.domain.alerts import Alert
from services.geofence.translate import alert_to_proto
from tandem.common.v1 import log_pb2
from tests.support.dispatch.instructed import InstructedPerson, instructed_person
from tests.support.geofence.stories import T0_MS, Story

STEP_S = 15
NEAR_S = 600
AWAY_S = 1_800
END_S = 2_700
"""He is 30 m from her from the first of these seconds to the second."""


def distance_m(at_s: int) -> float:
    """How far he is from her: he walks in from 900 m, stays at 30 m for 20 minutes, and drives 5 km away."""
    if at_s < NEAR_S:
        return 900 - 870 * at_s / NEAR_S
    return 30 if at_s <= AWAY_S else min(5_000.0, 30 + 10 * (at_s - AWAY_S))


async def test_at_each_minute_of_twenty_at_30_m_she_has_one_present_instruction_and_the_all_clear_comes_after(
    tmp_path: Path,
) -> None:
    story = Story()
    story.case(persons=[log_pb2.ProtectedTarget(person_id="p1", device_ids=["phone"])])
    near: list[InstructedAct] = []
    async with instructed_person(tmp_path, now_ms=T0_MS) as her:
        for at_s in range(0, END_S, STEP_S):
            story.at(at_s, "phone", 0)
            before = len(story.outputs)
            story.at(at_s, "tag", distance_m(at_s))
            await reads(her, story, before)
            await her.passes(STEP_S * 1_000)
            if at_s % 60 or not NEAR_S <= at_s <= AWAY_S:
                continue
            present = (await her.shown()).present
            assert present is not None and present.message_kind is MessageKind.INSTRUCTION, at_s
            valid = [each for each in await her.messages() if each.past_ms is None]
            assert [each.message_id for each in valid] == [present.message_id], at_s
            near.append(translate.instruction_from_json(present.instruction).act)
        messages = await her.messages()
    assert len(near) == 21 and set(near) == {InstructedAct.GO_INDOORS}
    ends = [each for each in messages if each.message_kind is MessageKind.OVER]
    assert ends == messages[-1:], "one all-clear, and nothing after it"
    ended_ms = next(alert.decided_at_ms for alert in story.alerts if alert.incident_ends)
    assert ends[0].issued_ms is not None and ends[0].issued_ms >= ended_ms > T0_MS + AWAY_S * 1_000


async def reads(her: InstructedPerson, story: Story, before: int) -> None:
    """The leg reads the alerts of a story from an output on."""
    for output in story.outputs[before:]:
        if isinstance(output, Alert):
            message = alert_to_proto(output, 0)
            if warnable := translate.alert(message.SerializeToString()):
                await her.reads(warnable)
