"""The judge of warnings: she is warned within 10 s, or the police are told why not."""

from __future__ import annotations

from dataclasses import dataclass

from services.common.messaging import flow
from services.dispatch.warning.domain import ChannelKind
from tandem.common.v1 import alert_pb2, command_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tests.simulation.jetstream.stream import Stored
from tests.simulation.judges.judge import SETTLED_S, Case, Judge
from tests.simulation.kernel.journal import Line

WARNED_WITHIN_S = 10.0
"""Maximum time without faults from an alert that warns her until a message for her is on its way, or the police are told, seconds."""
SHOWN_WITHIN_S = 30.0
"""Maximum time without faults until a warning shows on a device with network, seconds."""
MAX_WAIT_S = 300.0
"""Time after which a warning has expired, seconds."""
DEVICE = f"{ChannelKind.DEVICE.value}/"
"""Beginning of a channel to a device, as the leg logs it."""


@dataclass(slots=True)
class Unshown:
    """A warning that hasn't shown on its device."""

    since_s: float
    """When COMMANDS stored its command, seconds."""
    sequence: int
    """Sequence of the command in COMMANDS."""
    topic: str
    """What the warning is about: of those of one topic, a device gets only the newest."""
    is_lost: bool = False
    """Whether the server has lost the command."""


class WarningJudge(Judge):
    """She is warned within 10 s, or the police are told why not.

    An alert that the server loses is published once more, unless the log has lost its entry too. Then it warns nobody (seed 2105).
    A command that the server loses is published once more as well, even if its device has shown the warning. She has seen it, so the
    device needn't show it a second time (seed 3063). If the device shows a later warning of the same incident first, its receipt
    acknowledges the assignment, and the leg has no reason to repeat the lost one (seed 2598).

    Of the warnings of one topic a device gets only the newest, so an earlier one needn't show once a later one is stored (seed 26).
    An alert that adds nothing to her present instruction makes no message: that one's receipt acknowledges its assignment.
    """

    name = "warned"

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self._waiting: dict[tuple[str, str], tuple[float, int]] = {}
        """When a warning became due, seconds, and the sequence of its alert, by incident and person."""
        self._flagged: set[tuple[str, str]] = set()
        self._shown: set[tuple[str, str]] = set()
        """Warning and device of each warning that has shown."""
        self._read_notices = 0
        self._unshown: dict[tuple[str, str], Unshown] = {}
        """Warnings that haven't shown, by warning and device."""
        self._commanded: dict[tuple[str, str], str] = {}
        """Incident of each command that COMMANDS has stored, by warning and device."""
        case.mesh.journal.on_line.append(self._note)

    def _note(self, line: Line) -> None:
        """Fails if the leg believes that a device will get a warning, and no command for it was stored."""
        if line.event != "warning_handed_over" or not line.fields["way"].startswith(DEVICE):
            return
        key = (line.fields["message_id"], line.fields["way"].removeprefix(DEVICE))
        if key not in self._commanded:
            self.fail(f"the leg counts warning {key[0]} as handed over to {key[1]}, and COMMANDS never had it")

    def torn(self, stream: str, first_lost: int) -> None:
        if stream == flow.ALERTS.name:
            self._waiting = {key: due for key, due in self._waiting.items() if due[1] < first_lost}
        elif stream == flow.COMMANDS.name:
            for unshown in self._unshown.values():
                unshown.is_lost |= unshown.sequence >= first_lost

    def stored(self, stream: str, message: Stored) -> None:
        if stream == flow.ALERTS.name:
            alert = alert_pb2.Alert.FromString(message.data)
            for destination in alert.destinations:
                key = (alert.incident_id, destination.subject_id)
                is_warned = destination.leg == alert_pb2.WARNING and alert.demand >= geometry_pb2.WARN
                if is_warned and not alert.incident_ends and key not in self._flagged:
                    self._waiting.setdefault(key, (self.world.elapsed_s, message.sequence))
            if alert.incident_ends:
                for key in [key for key in self._waiting if key[0] == alert.incident_id]:
                    del self._waiting[key]
        elif stream == flow.COMMANDS.name and message.subject.startswith("command.dispatch-warning."):
            command = command_pb2.Command.FromString(message.data)
            shows = (command.instruction.show_notice.warning_id, command.device_id)
            self._commanded[shows] = command.reference
            topic = command.instruction.show_notice.topic
            self._unshown = {
                (warning_id, device_id): earlier
                for (warning_id, device_id), earlier in self._unshown.items()
                if (device_id, earlier.topic) != (command.device_id, topic)
            }
            self._unshown[shows] = Unshown(self.world.elapsed_s, message.sequence, topic)
            person_id = command.device_id.replace("phone-", "person-")
            self._flagged.add((command.reference, person_id))
            self._waiting.pop((command.reference, person_id), None)
        elif stream == flow.INCIDENTS.name:
            assignment = dispatch_pb2.Step.FromString(message.data).assignment
            is_informed = assignment.leg == alert_pb2.WARNING and assignment.state == dispatch_pb2.ACKNOWLEDGED
            if assignment.HasField("person_flag") or is_informed:
                self._flagged.add((assignment.incident_id, assignment.subject_id))
                self._waiting.pop((assignment.incident_id, assignment.subject_id), None)

    def _check_devices(self, now_s: float) -> None:
        """Fails if a device that was heard since a warning doesn't show it."""
        notices = self.case.head_end.notices
        shown = {(notice.warning_id, notice.device_id) for notice in notices[self._read_notices :]}
        self._read_notices = len(notices)
        self._shown |= shown
        warned_of = {(self._commanded.get(shows), shows[1]) for shows in shown}
        self._unshown = {
            shows: unshown
            for shows, unshown in self._unshown.items()
            if shows not in self._shown and not (unshown.is_lost and (self._commanded[shows], shows[1]) in warned_of)
        }
        head_end = self.case.mesh.processes["head-end"]
        if not head_end.is_up or min(self.case.faults.calm_s, now_s - head_end.started_s) < SETTLED_S + SHOWN_WITHIN_S:
            return
        for (warning_id, device_id), unshown in list(self._unshown.items()):
            since_s = unshown.since_s
            device = self.case.town.devices.get(device_id)
            if device is None:
                self.fail(f"warning {warning_id} went to {device_id}, which nobody has")
                return
            if now_s - since_s > MAX_WAIT_S or any(map(device.is_offline, (now_s, since_s))) or device.is_dead(now_s):
                del self._unshown[warning_id, device_id]  # nothing is promised about a device without network
            elif any(since_s < heard_s < now_s - SHOWN_WITHIN_S for heard_s in self.case.head_end.heard_s(device_id)):
                self.fail(f"warning {warning_id} doesn't show on {device_id}, which was heard since")
                return

    def each_second(self) -> None:
        calm_s, now_s = self.case.faults.calm_s, self.world.elapsed_s
        self._check_devices(now_s)
        for key, (since_s, _) in self._waiting.items():
            if now_s - since_s > WARNED_WITHIN_S and calm_s > SETTLED_S + WARNED_WITHIN_S:
                self.fail(
                    f"{key[1]} wasn't warned in {key[0]} within {now_s - since_s:.0f} s, and the police weren't told"
                )
                return
