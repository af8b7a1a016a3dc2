"""The evaluator, which kills itself at its first publication of a disclosure: `before` it, or `after` it and unmarked.

The plan is a file of one word; an empty one means to live.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import uvloop

from services.common.messaging.bus import Bus, PubAck
from services.geofence.__main__ import main

PLAN = "MORTAL_EVALUATOR_PLAN"


def arm(moment: str) -> None:
    """Makes the publication the last thing that the process does."""
    publish = Bus.publish_until_stored

    async def publish_and_die(self: Bus, subject: str, *args: Any, **kwargs: Any) -> PubAck | None:
        ours = subject.startswith("disclosure.")
        if ours and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        ack = await publish(self, subject, *args, **kwargs)
        if ours:
            os.kill(os.getpid(), signal.SIGKILL)
        return ack

    Bus.publish_until_stored = publish_and_die  # type: ignore[method-assign]


if __name__ == "__main__":
    plan = Path(os.environ[PLAN]).read_text()
    if plan:
        arm(plan)
    uvloop.run(main())
