"""Match reviews that wait for a person, for the badge on each page of a desk."""

from __future__ import annotations

from collections.abc import Callable

import grpc.aio

from services.console.domain.live_page import LivePage
from services.console.domain.match_reviews import WaitingReviews
from services.console.domain.people import Role
from services.console.live.viewers import Viewers
from services.console.match_reviews import translate
from services.console.mesh import MeshClient
from tandem.registry.v1 import match_review_pb2

CHECK_INTERVAL_S = 2.0
"""Interval at which the registry is asked while a browser views the page, in s."""
IDLE_INTERVAL_S = 10.0
"""The same interval while nobody does: other pages show the badge, too."""
DEADLINE_S = 5.0


class ReviewReader:
    """Keeps the number of waiting match reviews current."""

    def __init__(
        self, mesh: MeshClient, role: Role, page: LivePage, *, viewers: Viewers, connected: Callable[[], None]
    ) -> None:
        self._mesh, self._role, self._page = mesh, role, page
        self._viewers, self._connected = viewers, connected
        self.waiting: WaitingReviews | None = None
        """The reviews as last read; None while the registry doesn't answer."""

    async def poll(self) -> None:
        """Asks the registry until it doesn't answer. Raises AioRpcError."""
        while True:
            self._set(await self._read())
            self._connected()
            await self._viewers.next(CHECK_INTERVAL_S if self._viewers else IDLE_INTERVAL_S)

    async def _read(self) -> WaitingReviews:
        request = match_review_pb2.GetReviewQueueRequest()
        try:
            answer = await self._mesh.match_reviews.GetReviewQueue(
                request, metadata=self._mesh.own_identity(self._role), timeout=DEADLINE_S
            )
        except grpc.aio.AioRpcError:
            self._set(None)  # an old number would suggest that nothing new waits
            raise
        return translate.waiting(answer)

    def _set(self, waiting: WaitingReviews | None) -> None:
        if waiting != self.waiting:
            self.waiting = waiting
            self._page.count_change()
