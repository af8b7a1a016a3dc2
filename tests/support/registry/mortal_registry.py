"""A registry that kills itself at a planned publication: just before it, or just after it and before it is marked as sent.

The plan is a file of two words, for example `3 before`. An empty file means that the registry doesn't kill itself.
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
    """Kill the process at the publication of this number; `moment` is `before` or `after`."""
    publish, publications = Bus.publish, 0

    async def publish_and_die(self: Bus, *args: Any, **kwargs: Any) -> PubAck:
        nonlocal publications
        publications += 1
        is_planned = publications == number  # others may begin before this one is acknowledged
        if is_planned and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        ack = await publish(self, *args, **kwargs)
        if is_planned:
            os.kill(os.getpid(), signal.SIGKILL)
        return ack

    Bus.publish = publish_and_die  # type: ignore[method-assign]


if __name__ == "__main__":
    plan = Path(os.environ[PLAN]).read_text().split()
    if plan:
        arm(int(plan[0]), plan[1])
    telemetry.configure("registry")
    uvloop.run(main(RegistrySettings()))
