"""Evaluator process for tests that kills itself at its first publication of a disclosure.

The file named by MORTAL_EVALUATOR_PLAN holds one word: `before` the publication, or `after` it but before it is marked as published. An
empty file means never.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import uvloop

from services.common.messaging.bus import Bus, PubAck
from services.geofence.__main__ import main
from services.geofence.settings import GeofenceSettings

PLAN = "MORTAL_EVALUATOR_PLAN"


def arm(moment: str) -> None:
    """Makes the process kill itself `before` or `after` its first publication of a disclosure."""
    publish = Bus.publish_until_stored

    async def publish_and_die(self: Bus, subject: str, *args: Any, **kwargs: Any) -> PubAck | None:
        is_disclosure = subject.startswith("disclosure.")
        if is_disclosure and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        ack = await publish(self, subject, *args, **kwargs)
        if is_disclosure:
            os.kill(os.getpid(), signal.SIGKILL)
        return ack

    Bus.publish_until_stored = publish_and_die  # type: ignore[method-assign]


if __name__ == "__main__":
    plan = Path(os.environ[PLAN]).read_text()
    if plan:
        arm(plan)
    uvloop.run(main(GeofenceSettings()))
