"""Checkpoints on disk: one file each, written whole or not at all. Its name says partition, sequence, what it rests on, and keyed hash.

It rests on the entry that it stands behind, and on the newest alert and figures that were stored when it was made (`Footing`). A
checkpoint is good only where the streams still hold these.

Encoding a country's state takes seconds. So a child process does it, on the copy of the memory that a fork is, while the
evaluator goes on. What the child writes is a draft; it counts once the evaluator says so.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from services.common.messaging.cursors import StreamCursor
from services.common.observability.telemetry import logger
from services.common.storage import durable
from services.geofence import state_keys
from services.geofence.domain import codec
from services.geofence.domain.state import State
from services.geofence.state_keys import StateKeys

KEPT_NEWEST = 2
KEPT_SPANS_S = (0, 3_600, 86_400)
"""Besides the newest, the oldest checkpoint of each of these spans of age is kept, seconds: a log that went back by an hour, as an
older store does that is put in its place, isn't folded again from its start."""
NICENESS = 10
"""Of the child: alerts go before checkpoints."""
_UNKNOWN = 255
_FIRST_FILE = 3
"""Behind standard input, output and error."""
_STORED = r"(?:-{}(\d+)\.([0-9a-z-]+?))?"
_NAME = re.compile(
    rf"checkpoint-p(\d+)-s(\d+)-e(\d+)\.([0-9a-f]+){_STORED.format('a')}{_STORED.format('m')}-([0-9a-f]{{64}})\.json"
)


class CheckpointFailed(Exception):
    """A checkpoint couldn't be written; the message says why."""


class PublishedAlert(NamedTuple):
    """An alert or its figures in their stream. No other message ever has their subject, so that this is their identity."""

    sequence: int
    alert_id: str


class Footing(NamedTuple):
    """What a checkpoint rests on."""

    entry: StreamCursor
    """The last entry that is folded in it."""
    alert: PublishedAlert | None
    """The newest alert that was stored by then; all that the entries decided lie before it."""
    figures: PublishedAlert | None
    """The newest figures that were stored by then."""


class Checkpoint(NamedTuple):
    """A checkpoint on disk."""

    footing: Footing
    path: Path


@dataclass(frozen=True, slots=True)
class PendingCheckpoint:
    """A checkpoint that a child process writes."""

    partition: int
    sequence: int
    pid: int
    """Of the child."""


@dataclass(frozen=True, slots=True)
class CheckpointStore:
    """Checkpoints of one evaluator."""

    folder: Path
    keys: StateKeys = field(default_factory=partial(state_keys.of_secret, ""))
    """By which files are known as written by an evaluator of this mesh."""

    def save(self, partition: int, footing: Footing, encoded: bytes) -> None:
        """Writes a checkpoint durably and drops those that aren't kept any more. Raises OSError."""
        self._keep(self._write(partition, footing.entry.sequence, encoded), partition, footing)

    def begin(self, state: State) -> PendingCheckpoint:
        """Has the state as it is now written by a child process. Raises OSError where there can't be one."""
        pid = os.fork()
        if pid:
            return PendingCheckpoint(state.partition, state.sequence, pid)
        failed = _UNKNOWN
        try:
            _stand_alone()
            self._write(state.partition, state.sequence, codec.encode(state))
            failed = 0
        except OSError as error:
            failed = error.errno or _UNKNOWN
        finally:
            os._exit(failed)  # nothing of the evaluator's is cleaned up here: it isn't this process's

    def is_written(self, draft: PendingCheckpoint) -> bool:
        """Whether the child is done; doesn't wait for it, and tells once. Raises DraftFailed."""
        pid, status = os.waitpid(draft.pid, os.WNOHANG)
        if not pid:
            return False
        code = os.waitstatus_to_exitcode(status)
        if code:
            raise CheckpointFailed(os.strerror(code) if 0 < code < _UNKNOWN else f"the child ended with {code}")
        return True

    def finish(self, draft: PendingCheckpoint, footing: Footing) -> None:
        """From now on what was written is a checkpoint. Raises OSError."""
        (path,) = self.folder.glob(f"checkpoint-p{draft.partition}-s{draft.sequence}-*.draft-{draft.pid}")
        self._keep(path, draft.partition, footing)

    def abandon(self, draft: PendingCheckpoint) -> None:
        """Ends a child that isn't done."""
        os.kill(draft.pid, signal.SIGKILL)
        os.waitpid(draft.pid, 0)

    def _write(self, partition: int, sequence: int, encoded: bytes) -> Path:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"checkpoint-p{partition}-s{sequence}-{self.keys.checkpoint(encoded)}.json.draft-{os.getpid()}"
        path = self.folder / name
        path.unlink(missing_ok=True)
        durable.write_draft(path, encoded)
        return path

    def _keep(self, draft: Path, partition: int, footing: Footing) -> None:
        head, _, digest = draft.name.partition(".json")[0].rpartition("-")
        durable.put(draft, draft.with_name(f"{head}{_told(footing)}-{digest}.json"))
        found = [one.path for one in self.found(partition)]
        ages_s = [time.time() - path.stat().st_mtime for path in found]
        keep = set(range(KEPT_NEWEST)) | _oldest_of_spans(ages_s)
        for i, path in enumerate(found):
            if i not in keep:
                path.unlink(missing_ok=True)

    def found(self, partition: int) -> list[Checkpoint]:
        """All checkpoints of a partition, the newest first, whole or damaged."""
        found = []
        for path in self.folder.glob(f"checkpoint-p{partition}-*.json"):
            if name := _NAME.fullmatch(path.name):
                entry = StreamCursor(int(name[2]), int(name[3]), name[4])
                found.append(Checkpoint(Footing(entry, _stored(name[5], name[6]), _stored(name[7], name[8])), path))
        return sorted(found, reverse=True, key=lambda one: one.footing.entry)

    def read(self, checkpoint: Checkpoint, log_id: str) -> State | None:
        """The state of a checkpoint; None where its file is damaged, can't be read by this fold, or is of another log."""
        partition_and_sequence = {"sequence": checkpoint.footing.entry.sequence, "file": checkpoint.path.name}
        data = checkpoint.path.read_bytes()
        if not self.keys.is_checkpoint(data, checkpoint.path.stem.rpartition("-")[2]):
            logger().error("checkpoint_damaged", **partition_and_sequence)
            return None
        gc.disable()  # it would look through what has been read so far again and again
        try:
            state = codec.decode(data)
        except codec.UnreadableState as error:
            logger().warning("checkpoint_unreadable", reason=str(error), **partition_and_sequence)
            return None
        finally:
            gc.enable()
        if state.log_id != log_id:
            logger().error("checkpoint_of_another_log", **partition_and_sequence)
            return None
        return state

    def drop(self, checkpoint: Checkpoint) -> None:
        """Removes a checkpoint whose footing is lost."""
        checkpoint.path.unlink(missing_ok=True)

    def drop_drafts(self, partition: int) -> None:
        """Removes drafts that were left behind: nobody knows whether all before them is published."""
        for left in self.folder.glob(f"checkpoint-p{partition}-*.draft-*"):
            left.unlink(missing_ok=True)


def _told(footing: Footing) -> str:
    entry, alert, figures = footing
    name = f"-e{entry.stored_at_ns}.{entry.digest}"
    if alert:
        name += f"-a{alert.sequence}.{alert.alert_id}"
    return name + (f"-m{figures.sequence}.{figures.alert_id}" if figures else "")


def _stored(sequence: str | None, alert_id: str | None) -> PublishedAlert | None:
    return PublishedAlert(int(sequence), alert_id) if sequence and alert_id else None


def _oldest_of_spans(ages_s: Iterable[float]) -> set[int]:
    """Of files by age, the index of the oldest in each span."""
    oldest: dict[int, int] = {}
    for i, age_s in enumerate(ages_s):
        span = sum(age_s >= begins_s for begins_s in KEPT_SPANS_S[1:])
        if span < len(KEPT_SPANS_S) - 1:
            oldest[span] = i
    return set(oldest.values())


def _stand_alone() -> None:
    """In the child: lets go of the parent's sockets, so that its port is free once it is gone, and of its ways to be stopped."""
    gc.disable()
    os.closerange(_FIRST_FILE, os.sysconf("SC_OPEN_MAX"))
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, signal.SIG_DFL)
    os.nice(NICENESS)
