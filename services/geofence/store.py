"""Checkpoints on disk: one file each, named by partition, sequence and keyed hash, written whole or not at all.

Encoding a country's state takes seconds. So a child process does it, on the copy of the memory that a fork is, while the
evaluator goes on. What the child writes is a draft; it counts once the evaluator says so.
"""

from __future__ import annotations

import gc
import os
import re
import signal
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from services.common import durable
from services.common.telemetry import logger
from services.geofence import state_keys
from services.geofence.domain import codec
from services.geofence.domain.state import State
from services.geofence.state_keys import StateKeys

KEEP = 2
NICENESS = 10
"""Of the child: alerts go before checkpoints."""
_UNKNOWN = 255
_FIRST_FILE = 3
"""Behind standard input, output and error."""
_NAME = re.compile(r"checkpoint-p(\d+)-s(\d+)-([0-9a-f]{64})\.json")


class DraftFailed(Exception):
    """A checkpoint couldn't be written; the message says why."""


@dataclass(frozen=True, slots=True)
class Draft:
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

    def save(self, partition: int, sequence: int, encoded: bytes) -> None:
        """Writes a checkpoint durably and drops all but the newest two. Raises OSError."""
        self._keep(self._write(partition, sequence, encoded), partition)

    def begin(self, state: State) -> Draft:
        """Has the state as it is now written by a child process. Raises OSError where there can't be one."""
        pid = os.fork()
        if pid:
            return Draft(state.partition, state.sequence, pid)
        failed = _UNKNOWN
        try:
            _stand_alone()
            self._write(state.partition, state.sequence, codec.encode(state))
            failed = 0
        except OSError as error:
            failed = error.errno or _UNKNOWN
        finally:
            os._exit(failed)  # nothing of the evaluator's is cleaned up here: it isn't this process's

    def is_written(self, draft: Draft) -> bool:
        """Whether the child is done; doesn't wait for it, and tells once. Raises DraftFailed."""
        pid, status = os.waitpid(draft.pid, os.WNOHANG)
        if not pid:
            return False
        code = os.waitstatus_to_exitcode(status)
        if code:
            raise DraftFailed(os.strerror(code) if 0 < code < _UNKNOWN else f"the child ended with {code}")
        return True

    def finish(self, draft: Draft) -> None:
        """From now on what was written is a checkpoint. Raises OSError."""
        (path,) = self.folder.glob(f"checkpoint-p{draft.partition}-s{draft.sequence}-*.draft-{draft.pid}")
        self._keep(path, draft.partition)

    def abandon(self, draft: Draft) -> None:
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

    def _keep(self, draft: Path, partition: int) -> None:
        durable.put(draft, draft.with_suffix(""))
        for _, old in self._newest_first(partition)[KEEP:]:
            old.unlink(missing_ok=True)

    def load(self, partition: int, log_id: str) -> State | None:
        """The newest state of this log whose file is whole; None where the log must be replayed from its start.

        Drafts that an evaluator left behind when it was killed are dropped: nobody knows whether all before them is published.
        """
        for left in self.folder.glob(f"checkpoint-p{partition}-*.draft-*"):
            left.unlink(missing_ok=True)
        for sequence, path in self._newest_first(partition):
            data = path.read_bytes()
            if not self.keys.is_checkpoint(data, path.stem.rpartition("-")[2]):
                logger().error("checkpoint_damaged", partition=partition, sequence=sequence)
                continue
            gc.disable()  # it would look through what has been read so far again and again
            try:
                state = codec.decode(data)
            except codec.UnreadableState as error:
                logger().warning("checkpoint_unreadable", partition=partition, sequence=sequence, reason=str(error))
                continue
            finally:
                gc.enable()
            if state.log_id == log_id:
                return state
            logger().error("checkpoint_of_another_log", partition=partition, sequence=sequence)
        return None

    def _newest_first(self, partition: int) -> list[tuple[int, Path]]:
        found = []
        for path in self.folder.glob(f"checkpoint-p{partition}-*.json"):
            name = _NAME.fullmatch(path.name)
            if name:
                found.append((int(name[2]), path))
        return sorted(found, reverse=True)


def _stand_alone() -> None:
    """In the child: lets go of the parent's sockets, so that its port is free once it is gone, and of its ways to be stopped."""
    gc.disable()
    os.closerange(_FIRST_FILE, os.sysconf("SC_OPEN_MAX"))
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, signal.SIG_DFL)
    os.nice(NICENESS)
