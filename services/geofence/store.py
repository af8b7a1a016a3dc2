"""Checkpoints on disk: one atomically written file each. The file name holds partition, sequence, footing and keyed hash.

The footing (`Footing`) names three messages: the last folded entry, and the newest alert and the newest measure that the streams held
when the checkpoint was made. A checkpoint is usable only while the streams still hold these messages.

Encoding the state of a whole country takes seconds. So a forked child process encodes its copy of the memory while the evaluator
continues. The child writes a pending file, which becomes a checkpoint once the evaluator renames it.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import time
import traceback
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from services.common.messaging.cursors import StreamCursor
from services.common.observability.telemetry import logger
from services.common.storage import stored_files
from services.geofence import gc_control, settings
from services.geofence.domain import codec
from services.geofence.domain.state import State
from services.geofence.settings import StateKeys

KEPT_NEWEST = 2
KEPT_SPANS_S = (0, 3_600, 86_400)
"""Bounds of two age ranges, seconds: under an hour, and from an hour to a day. The KEPT_NEWEST newest checkpoints and the oldest one in
each range are kept. So an evaluator needn't fold the whole log again after the log went back by an hour, for instance to a restored
backup."""
NICENESS = 10
"""Niceness of the child process, because alerts have priority over checkpoints."""
_EXIT_UNKNOWN_ERROR = 255
_ERRORS_FILE = 3
"""File descriptor of the child, the first after standard input, output and error: a pipe by which it says what went wrong."""
_MAX_ERROR_BYTES = 1_000
_MAX_FRAMES = 4
_PUBLISHED_ALERT_PATTERN = r"(?:-{}(\d+)\.([0-9a-z-]+?))?"
_NAME = re.compile(
    rf"checkpoint-p(\d+)-s(\d+)-e(\d+)\.([0-9a-f]+){_PUBLISHED_ALERT_PATTERN.format('a')}{_PUBLISHED_ALERT_PATTERN.format('m')}-([0-9a-f]{{64}})\.json"
)


class CheckpointFailed(Exception):
    """A checkpoint couldn't be written; the message gives the reason."""


class PublishedAlert(NamedTuple):
    """Identity of a stored alert or measure. Unlike a `StreamCursor` it needs no hash: the alert id is part of the subject, so
    another message at this sequence would have another subject."""

    sequence: int
    alert_id: str


class Footing(NamedTuple):
    """The stored messages that a checkpoint depends on; it is usable only while the streams hold them."""

    entry: StreamCursor
    """The last entry that is folded into the checkpoint."""
    alert: PublishedAlert | None
    """The newest alert in ALERTS at that time. All alerts of the folded entries are stored at or before it."""
    measure: PublishedAlert | None
    """The newest measure in MEASURES at that time."""


class Checkpoint(NamedTuple):
    """A checkpoint file and its footing."""

    footing: Footing
    path: Path


@dataclass(frozen=True, slots=True)
class PendingCheckpoint:
    """A checkpoint that a child process is writing."""

    partition: int
    sequence: int
    pid: int
    """Process id of the child."""
    errors: int | None = None
    """File descriptor from which the child's error can be read once it has ended; None if no process of its own writes."""


@dataclass(frozen=True, slots=True)
class CheckpointStore:
    """Checkpoints of one evaluator."""

    folder: Path
    keys: StateKeys = field(default_factory=partial(settings.state_keys_of_secret, ""))
    """Keys that authenticate the files as written by an evaluator of this mesh."""

    def save(self, partition: int, footing: Footing, encoded: bytes) -> None:
        """Writes a checkpoint durably and removes expired ones. Raises OSError."""
        self._commit_and_prune(self._write(partition, footing.entry.sequence, encoded), partition, footing)

    def begin(self, state: State) -> PendingCheckpoint:
        """Forks a child process that writes the present state. Raises OSError if the fork fails."""
        errors, errors_of_child = os.pipe()
        try:
            pid = os.fork()
        except OSError:
            os.close(errors)
            os.close(errors_of_child)
            raise
        if pid:
            os.close(errors_of_child)
            return PendingCheckpoint(state.partition, state.sequence, pid, errors=errors)
        exit_code = _EXIT_UNKNOWN_ERROR
        try:
            _detach_from_parent(errors_of_child)
            self._write(state.partition, state.sequence, codec.encode(state))
            exit_code = 0
        except OSError as error:
            exit_code = error.errno or _EXIT_UNKNOWN_ERROR
        except BaseException as error:
            # Its text may hold a position, so only its type and place are kept.
            os.write(_ERRORS_FILE, f"{type(error).__name__} at {_places(error)}".encode()[:_MAX_ERROR_BYTES])
        finally:
            os._exit(exit_code)  # no cleanup: the evaluator's resources belong to the parent process

    def is_written(self, pending: PendingCheckpoint) -> bool:
        """Whether the child has ended, without waiting. Don't call it again once it has returned True or raised, because the child
        is gone then. Raises CheckpointFailed."""
        pid, status = os.waitpid(pending.pid, os.WNOHANG)
        if not pid:
            return False
        error = _read_error(pending)
        code = os.waitstatus_to_exitcode(status)
        if 0 < code < _EXIT_UNKNOWN_ERROR:
            raise CheckpointFailed(os.strerror(code))
        if code:
            raise CheckpointFailed(f"the child ended with {code}{f': {error}' if error else ''}")
        return True

    def finish(self, pending: PendingCheckpoint, footing: Footing) -> None:
        """Turns a written pending file into a checkpoint with this footing. Raises OSError."""
        (path,) = self.folder.glob(f"checkpoint-p{pending.partition}-s{pending.sequence}-*.draft-{pending.pid}")
        self._commit_and_prune(path, pending.partition, footing)

    def discard(self, pending: PendingCheckpoint) -> None:
        """Removes the file of a checkpoint that failed. Otherwise each one that a full disk cuts off would keep the disk full."""
        with suppress(OSError):
            for path in self.folder.glob(f"checkpoint-p{pending.partition}-*.draft-{pending.pid}"):
                path.unlink(missing_ok=True)

    def abandon(self, pending: PendingCheckpoint) -> None:
        """Kills a child that is still writing."""
        os.kill(pending.pid, signal.SIGKILL)
        os.waitpid(pending.pid, 0)
        _read_error(pending)

    def _write(self, partition: int, sequence: int, encoded: bytes) -> Path:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"checkpoint-p{partition}-s{sequence}-{self.keys.checkpoint(encoded)}.json.draft-{os.getpid()}"
        path = self.folder / name
        path.unlink(missing_ok=True)
        stored_files.write_draft(path, encoded)
        return path

    def _commit_and_prune(self, pending: Path, partition: int, footing: Footing) -> None:
        head, _, digest = pending.name.partition(".json")[0].rpartition("-")
        stored_files.put(pending, pending.with_name(f"{head}{_footing_name(footing)}-{digest}.json"))
        paths = [checkpoint.path for checkpoint in self.found(partition)]
        ages_s = [time.time() - path.stat().st_mtime for path in paths]
        keep = set(range(KEPT_NEWEST)) | _oldest_of_spans(ages_s)
        for i, path in enumerate(paths):
            if i not in keep:
                path.unlink(missing_ok=True)

    def found(self, partition: int) -> list[Checkpoint]:
        """All checkpoints of a partition, the newest first, damaged ones included."""
        checkpoints = []
        for path in self.folder.glob(f"checkpoint-p{partition}-*.json"):
            if name := _NAME.fullmatch(path.name):
                entry = StreamCursor(int(name[2]), int(name[3]), name[4])
                checkpoints.append(
                    Checkpoint(
                        Footing(entry, _published_alert(name[5], name[6]), _published_alert(name[7], name[8])), path
                    )
                )
        return sorted(checkpoints, reverse=True, key=lambda checkpoint: checkpoint.footing.entry)

    def read(self, checkpoint: Checkpoint, log_id: str) -> State | None:
        """The state of a checkpoint; None if its file is damaged, can't be read from the disk or by this fold version, or is of another
        log."""
        log_fields = {"sequence": checkpoint.footing.entry.sequence, "file": checkpoint.path.name}
        try:
            data = checkpoint.path.read_bytes()
        except OSError as error:
            logger().error("checkpoint_damaged", reason=error.strerror, **log_fields)
            return None
        if not self.keys.is_checkpoint(data, checkpoint.path.stem.rpartition("-")[2]):
            logger().error("checkpoint_damaged", **log_fields)
            return None
        try:
            with gc_control.no_collection():  # the collector would scan the growing state repeatedly
                state = codec.decode(data)
        except codec.UnreadableState as error:
            logger().warning("checkpoint_unreadable", reason=str(error), **log_fields)
            return None
        if state.log_id != log_id:
            logger().error("checkpoint_of_another_log", **log_fields)
            return None
        return state

    def drop(self, checkpoint: Checkpoint) -> None:
        """Removes a checkpoint whose footing is lost."""
        checkpoint.path.unlink(missing_ok=True)

    def drop_pending(self, partition: int) -> None:
        """Removes pending files of an earlier process. Its alerts may be unpublished, so the files must not become checkpoints."""
        for path in self.folder.glob(f"checkpoint-p{partition}-*.draft-*"):
            path.unlink(missing_ok=True)


def _footing_name(footing: Footing) -> str:
    entry, alert, measure = footing
    name = f"-e{entry.stored_at_ns}.{entry.digest}"
    if alert:
        name += f"-a{alert.sequence}.{alert.alert_id}"
    return name + (f"-m{measure.sequence}.{measure.alert_id}" if measure else "")


def _published_alert(sequence: str | None, alert_id: str | None) -> PublishedAlert | None:
    return PublishedAlert(int(sequence), alert_id) if sequence and alert_id else None


def _oldest_of_spans(ages_s: Iterable[float]) -> set[int]:
    """Index of the oldest file in each span of KEPT_SPANS_S, for files sorted by rising age."""
    oldest: dict[int, int] = {}
    for i, age_s in enumerate(ages_s):
        span = sum(age_s >= start_s for start_s in KEPT_SPANS_S[1:])
        if span < len(KEPT_SPANS_S) - 1:
            oldest[span] = i
    return set(oldest.values())


def _read_error(pending: PendingCheckpoint) -> str:
    """The error of a child that has ended, and closes its pipe. Empty if it had none, or was killed."""
    if pending.errors is None:
        return ""
    try:
        return os.read(pending.errors, _MAX_ERROR_BYTES).decode(errors="replace")
    finally:
        os.close(pending.errors)


def _places(error: BaseException) -> str:
    """The innermost places of an error in the code, the innermost first."""
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    return " < ".join(f"{Path(path).name}:{line}" for path, line in frames[: -_MAX_FRAMES - 1 : -1])


def _detach_from_parent(errors: int) -> None:
    """Prepares the forked child. Closes inherited sockets; otherwise the child would hold the port of an evaluator that died. Only the
    pipe `errors` stays, as _ERRORS_FILE. Restores the default actions of signals. Lowers the priority, in a session of its own: where
    Linux shares the processor between sessions (autogroup), the child would otherwise get the share of an evaluator that is idle.
    """
    gc.disable()
    os.dup2(errors, _ERRORS_FILE)
    os.closerange(_ERRORS_FILE + 1, os.sysconf("SC_OPEN_MAX"))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    os.nice(NICENESS)
    with suppress(OSError):  # no autogroup in this kernel, or too many changes of autogroups in this moment
        Path("/proc/self/autogroup").write_text(str(NICENESS))
