"""`tandem send`: send a device's track from a file into a running mesh, as a vendor's head-end does."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from services.cli import terminal, usage
from services.cli.simulate import tracks
from services.cli.simulate.tracks import INTERVAL_S, ReportedTrack
from services.cli.terminal import SafeConsole
from services.client import mesh
from services.client.actors import HeadEnd, Report, time_of
from services.client.mesh import DEFAULT_FOLDER, Clients, MeshConnection
from services.common import times
from services.common.failure import FAILED, MISUSED, CommandFailed
from services.common.ids import hash_id
from services.ingest.domain import MAX_REPORTED_ACCURACY_M
from tandem.ingest.v1 import ingest_pb2

MAX_BATCH = 100
"""Maximum number of reports in a batch."""
SLOWEST, FASTEST = 0.001, 100_000.0
TOO_OFTEN_S = 1.0
"""Delay before a report that was refused as too frequent is resent, seconds."""
DEVICE_REFUSED = (
    ingest_pb2.REFUSAL_CODE_UNKNOWN_DEVICE,
    ingest_pb2.REFUSAL_CODE_REVOKED,
    ingest_pb2.REFUSAL_CODE_NOT_YOURS,
)
"""Reasons to refuse whatever a device reports."""
DEVICE_PATIENCE_S, DEVICE_RETRY_S = 10.0, 0.5
"""How long reports of a refused device are resent, and at which interval, seconds: a device that was put into the registry just now
takes a moment to reach ingest."""
MAX_REFUSED_FIRST = 20
"""Maximum number of reports that are refused before any is accepted: the command stops there, as the rest would be refused, too."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Pace:
    """Timing of a track: when its reports are due, and which times the reports carry."""

    speed: float
    """Speed relative to the track's own times; 0 for as fast as ingest accepts."""
    as_recorded: bool
    """Whether reports keep their times and ids. Otherwise the times are shifted: the first report is now, or at speed 0 the newest."""

    def round(self, track: ReportedTrack, now_ms: int) -> tuple[list[tuple[int, Report]], int]:
        """The due time of each report, and the earliest start of the next round. All times are mesh time, milliseconds."""
        moments_ms = [tracks.time_ms(report) for report in track.reports]
        first_ms, shift_ms = moments_ms[0], now_ms - max(moments_ms)
        planned: list[tuple[int, Report]] = []
        due_ms = now_ms
        for report, moment_ms in zip(track.reports, moments_ms, strict=True):
            paced_ms = now_ms + round((moment_ms - first_ms) / self.speed) if self.speed else now_ms
            due_ms = max(due_ms, paced_ms)  # a report with an earlier time keeps its place in the order
            given_ms = paced_ms if self.speed else moment_ms + shift_ms
            planned.append((due_ms, report if self.as_recorded else _moved(report, given_ms, now_ms)))
        steps = len(planned) - 1
        step_ms = (due_ms - now_ms) / steps if steps else INTERVAL_S * 1000 / (self.speed or 1)
        return planned, due_ms + round(step_ms)


def _moved(report: Report, moment_ms: int, began_ms: int) -> Report:
    copy: Report = type(report)()
    copy.MergeFrom(report)  # type: ignore[arg-type]  # both have the same type
    # The mesh counts a report id of a device only once, so each round and run needs new ids.
    copy.report_id = hash_id("report", began_ms, report.device_id, report.report_id)
    time_of(copy).CopyFrom(times.to_timestamp(moment_ms))
    return copy


def send(
    track: Annotated[Path, typer.Argument(help="The track: a .gpx, .csv or .ndjson file.")],
    device: Annotated[str, typer.Option(help="Device that reports it.")],
    folder: usage.MeshFolder = DEFAULT_FOLDER,
    *,
    speed: Annotated[
        float, typer.Option(help="Speed relative to the track's own times; 0 for as fast as ingest accepts.")
    ] = 1.0,
    loop: Annotated[bool, typer.Option("--loop", help="Repeat the track until Ctrl-C.")] = False,
    as_recorded: Annotated[
        bool, typer.Option("--as-recorded", help="Keep the file's times; otherwise the first position is now.")
    ] = False,
    backfill: Annotated[
        bool, typer.Option("--backfill", help="Mark reports as stored while the device was offline.")
    ] = False,
    accuracy: Annotated[
        float, typer.Option(help="Accuracy of positions without one, metres.", min=0.001, max=MAX_REPORTED_ACCURACY_M)
    ] = 10.0,
) -> None:
    """Send a track as a vendor's head-end does. Commands to the device are shown and acknowledged.

    At speed 0 the last position is now. The command stops if the device itself is refused, or each of its first 20 reports. Exit code
    1 if a report was refused, 2 if a line was bad.
    """
    usage.required_id("--device", device)
    if speed and not SLOWEST <= speed <= FASTEST:
        raise CommandFailed(f"--speed: must be 0, or from {SLOWEST:g} to {FASTEST:g}", MISUSED)
    if loop and (as_recorded or not speed):
        raise CommandFailed("--loop excludes --as-recorded and --speed 0, as it needs new times in each round", MISUSED)
    read = tracks.read(track, device, accuracy)
    if as_recorded and not read.timed:
        raise CommandFailed(f"{track}: has no times to keep; leave out --as-recorded", MISUSED)
    running = mesh.load(folder)
    console = SafeConsole(highlight=False, soft_wrap=True)
    for fault in read.faults:
        console.print(str(fault), style="red")
    if not read.timed:
        console.print(f"no point has a time; points are sent {INTERVAL_S} s apart")
    if read.others:
        console.print(f"{read.others} lines belong to other devices and aren't sent")
    sent = SendOutcome()
    try:
        if read.reports:
            pace = Pace(speed, as_recorded)
            uvloop.run(_send(running, read, pace, sent=sent, console=console, loop=loop, backfill=backfill))
    finally:
        for reason, count in sorted(sent.refused.items()):
            console.print(f"refused ({count}): {reason}", style="red")
        console.print(sent.summary())
    raise typer.Exit(FAILED if sent.refused else MISUSED if read.faults else 0)


@dataclass(slots=True)
class SendOutcome:
    """Counts of a `tandem send`."""

    rounds: int = 0
    """Number of rounds begun."""
    planned: int = 0
    """Number of reports in these rounds."""
    accepted: int = 0
    """Number of reports that are durable in the log."""
    refused: Counter[str] = field(default_factory=Counter)
    """Number of refused reports, by field and reason."""
    held_up: int = 0
    """Number of times a batch had to wait because its device exceeded its reporting rate."""
    commands: int = 0
    """Number of acknowledged commands."""

    def summary(self) -> str:
        """The counts as one line."""
        refused = self.refused.total()
        parts = {
            "rounds": self.rounds if self.rounds > 1 else 0,
            "refused": refused,
            "not sent": self.planned - self.accepted - refused,
            "held up, since the device may not report more often": self.held_up,
            "commands acknowledged": self.commands,
        }
        summary = [f"{self.accepted} of {self.planned} reports are in the log"]
        return "; ".join(summary + [f"{name}: {count}" for name, count in parts.items() if count])


async def _send(
    running: MeshConnection,
    track: ReportedTrack,
    pace: Pace,
    *,
    sent: SendOutcome,
    console: SafeConsole,
    loop: bool,
    backfill: bool,
) -> None:
    stop, events = asyncio.Event(), asyncio.get_running_loop()

    def end() -> None:
        stop.set()
        for number in _SIGNALS:
            events.remove_signal_handler(number)  # a second signal ends the process at once

    for number in _SIGNALS:
        events.add_signal_handler(number, end)

    def commanded(command: ingest_pb2.DeviceCommand) -> None:
        sent.commands += 1
        console.print(f"command {command.command_id} to {command.device_id}: {_described(command)}")

    async with mesh.connect(running) as clients, HeadEnd(clients, commanded) as head_end:
        sender = _TrackSender(clients=clients, head_end=head_end, sent=sent, stop=stop, backfill=backfill)
        begins_ms = clients.clock.now_ms()
        with terminal.progress_bar() as shown:
            task = shown.add_task("sending", total=len(track.reports))
            while not stop.is_set():
                planned, begins_ms = pace.round(track, max(begins_ms, clients.clock.now_ms()))
                shown.reset(task)
                await sender.send(planned, lambda count: shown.advance(task, count))
                if not loop or stop.is_set():
                    break
                await sender.wait_until(begins_ms)
        await head_end.settle()


class _TrackSender:
    """Sends each report when it is due, until it is durable or refused for good."""

    def __init__(
        self, clients: Clients, head_end: HeadEnd, sent: SendOutcome, *, stop: asyncio.Event, backfill: bool
    ) -> None:
        self._clock = clients.clock
        self._head_end = head_end
        self._sent = sent
        self._stop = stop
        self._backfill = backfill

    async def send(self, planned: Sequence[tuple[int, Report]], advance: Callable[[int], None]) -> None:
        """Sends one round. Calls `advance` with the number of newly settled reports."""
        self._sent.rounds += 1
        self._sent.planned += len(planned)
        done = 0
        while done < len(planned) and not self._stop.is_set():
            await self.wait_until(planned[done][0])
            now_ms = self._clock.now_ms()
            due: list[Report] = []
            for due_ms, report in planned[done : done + MAX_BATCH]:
                # In a batch, positions come before events, so a position after an event has to go with the next batch.
                if due_ms > now_ms or (due and isinstance(due[-1], ingest_pb2.EquipmentEvent)):
                    break
                due.append(report)
            if due:
                await self._deliver(due)
                advance(len(due))
                done += len(due)

    async def wait_until(self, mesh_ms: int) -> None:
        """Waits until a mesh time, or until the command is stopped."""
        await self._wait(self._clock.wall_s(mesh_ms - self._clock.now_ms()))

    async def _wait(self, wall_s: float) -> None:
        if wall_s > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(wall_s):
                    await self._stop.wait()

    async def _deliver(self, reports: list[Report]) -> None:
        """Sends reports that are due. Raises CommandFailed if ingest refuses their device, or all of its first reports."""
        give_up_at = time.monotonic() + DEVICE_PATIENCE_S
        while reports:
            refusals = await self._head_end.exchange(reports, backfill=self._backfill)
            self._sent.accepted += len(reports) - len(refusals)
            of_device = [refusal for _, refusal in refusals if _is_of_device(refusal)]
            retries_device = bool(of_device) and time.monotonic() < give_up_at
            too_often, retries = False, []
            for report, refusal in refusals:
                if refusal.code == ingest_pb2.REFUSAL_CODE_TOO_OFTEN:
                    too_often = True
                    retries.append(report)
                elif retries_device and _is_of_device(refusal):
                    retries.append(report)
                else:
                    self._sent.refused[f"{refusal.field.rpartition('.')[2]}: {refusal.reason}"] += 1
            if of_device and not retries_device:
                raise CommandFailed(f"stopped: device {reports[0].device_id} {of_device[0].reason}")
            if not self._sent.accepted and self._sent.refused.total() >= MAX_REFUSED_FIRST:
                refused, (reason, _) = self._sent.refused.total(), self._sent.refused.most_common(1)[0]
                raise CommandFailed(
                    f"stopped: device {reports[0].device_id}: the first {refused} reports were all refused, most by {reason}"
                )
            if retries:
                self._sent.held_up += too_often
                await self._wait(TOO_OFTEN_S if too_often else DEVICE_RETRY_S)
            reports = [] if self._stop.is_set() else retries


def _is_of_device(refusal: ingest_pb2.Refusal) -> bool:
    """Whether ingest refuses the device that reports, and not one report or the home unit at which the device was seen."""
    return refusal.code in DEVICE_REFUSED and refusal.field.endswith("device_id")


def _described(command: ingest_pb2.DeviceCommand) -> str:
    instruction = command.instruction
    match instruction.WhichOneof("kind"):
        case "report_every":
            for_s = instruction.report_every.for_s
            return f"report every {instruction.report_every.interval_s} s" + (f" for {for_s} s" if for_s else "")
        case "report_as_usual":
            return "report as usual"
        case "vibrate":
            return f"vibrate for {instruction.vibrate.duration_s} s"
        case "locate_now":
            return "report the position now"
        case "remind_wearer":
            return f"tell the wearer: {instruction.remind_wearer.text}"
    return "not known to this version, and refused"
