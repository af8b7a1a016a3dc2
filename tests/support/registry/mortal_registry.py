"""The registry, which kills itself at a publication that a plan names: just before it, or just after it and unmarked.

The plan is a file of two words, such as `3 before`; an empty one means to live.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import uvloop

from services.common.messaging.bus import Bus, PubAck
from services.common.observability import telemetry
from services.registry.__main__ import main
from services.registry.settings import RegistrySettings

PLAN = "MORTAL_REGISTRY_PLAN"


def arm(number: int, moment: str) -> None:
    """Makes the publication of this number the last thing that the process does."""
    publish, made = Bus.publish_until_stored, 0

    async def publish_and_die(self: Bus, *args: Any, **kwargs: Any) -> PubAck | None:
        nonlocal made
        made += 1
        if made == number and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        ack = await publish(self, *args, **kwargs)
        if made == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return ack

    Bus.publish_until_stored = publish_and_die  # type: ignore[method-assign]


if __name__ == "__main__":
    plan = Path(os.environ[PLAN]).read_text().split()
    if plan:
        arm(int(plan[0]), plan[1])
    telemetry.configure("registry")
    uvloop.run(main(RegistrySettings()))
