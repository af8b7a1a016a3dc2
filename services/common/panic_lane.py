"""Panics under way, by sender: a repetition waits for the outcome of the first, and another panic of the same sender for its turn.

So panics need no limit by load: each sender has one under way, and an impatient or broken phone delays only its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from services.common.errors import TooMuchInProgress
from services.common.running import completed

T = TypeVar("T")
MAX_OF_SENDER = 16
"""Maximum number of different panics of one sender that are under way or wait for their turn. The first of them is on its way to the
desks, so a further one is sent later."""


class PanicLane(Generic[T]):
    """Brings panics on their way: one at a time for each sender, and each once however often it is repeated meanwhile."""

    def __init__(self) -> None:
        self._by_sender: dict[str, dict[Hashable, asyncio.Task[T]]] = {}
        """Panics of each sender that have no outcome yet, in the order of their turns."""

    async def send(self, sender: str, panic: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """Returns the outcome of a panic. `panic` is equal for its repetitions, whose `work` isn't called while it is under way.

        The work goes on if the caller is cancelled. Raises what the work raises, and TooMuchInProgress beyond MAX_OF_SENDER.
        """
        own = self._by_sender.setdefault(sender, {})
        if panic not in own:
            if len(own) >= MAX_OF_SENDER:
                raise TooMuchInProgress(
                    f"{MAX_OF_SENDER} panics of this device are under way: send this one again later"
                )
            own[panic] = asyncio.ensure_future(
                self._in_turn(sender, panic, work, last=next(reversed(own.values()), None))
            )
        return await completed(own[panic])

    async def _in_turn(
        self, sender: str, panic: Hashable, work: Callable[[], Awaitable[T]], *, last: asyncio.Task[T] | None
    ) -> T:
        try:
            if last is not None:
                await asyncio.wait((last,))
            return await work()
        finally:
            own = self._by_sender[sender]
            del own[panic]
            if not own:
                del self._by_sender[sender]
