"""Page the person on call, by a program or a signed webhook. Neither uses the mesh, as the mesh may be broken."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from services.cli.failure import MISUSED, CommandFailed
from services.common import times
from services.common.ids import hash_id
from services.common.observability.telemetry import logger
from services.common.rpc.errors import FailedPrecondition
from services.dispatch.exchange import receivers
from services.dispatch.exchange.posting import open_session, post
from services.dispatch.exchange.receivers import Receiver

RUNBOOK = "docs/how-to/respond/a-page-of-tandem-watch.md"
"""Page of the documents that says what to do, as the alert rules name theirs."""
WITHIN_S = 10.0
"""Timeout of a pager, seconds."""


@dataclass(frozen=True, slots=True)
class PageMessage:
    """The message to the person on call, without the name of a wearer or protected person."""

    id: str
    """Id of the page, the same for each try."""
    kind: str
    """Kind of the page: MISSING, STILL_MISSING or BACK, or TEST where somebody tries the pager."""
    text: str
    """The message as one line, fit for SMS."""
    outage_id: str
    """Id of the outage, the same for all its pages."""
    since: str
    """Time when the first missing canary was sent, RFC 3339."""
    last_seen: str
    """Progress of the newest canary that could have come further, in words."""
    not_answering: tuple[str, ...]
    """Processes of the mesh whose health check fails."""
    runbook: str = RUNBOOK
    """Page of the documents that says what to do."""

    def to_json(self) -> bytes:
        """The JSON that pagers receive."""
        return json.dumps(asdict(self), ensure_ascii=False).encode()


class PageFailed(Exception):
    """A pager didn't deliver the message. The reason may be logged."""


class Pager(Protocol):
    """A channel for pages."""

    name: str

    async def page(self, message: PageMessage) -> None:
        """Returns once the message was accepted. Raises PageFailed."""


class CommandPager:
    """Pages by a program: the message is JSON on its standard input, and exit code 0 means that it was accepted."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = tuple(command)
        self.name = Path(self._command[0]).name

    async def page(self, message: PageMessage) -> None:
        """Runs the program, see Pager.page."""
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
            )
        except OSError as error:
            raise PageFailed(f"{type(error).__name__} {error.errno}") from None
        try:
            async with asyncio.timeout(WITHIN_S):
                await process.communicate(message.to_json() + b"\n")
        except TimeoutError:
            raise PageFailed(f"didn't end within {WITHIN_S:.0f} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise PageFailed(f"exit code {process.returncode}")


class WebhookPager:
    """Pages by a webhook, signed like the webhooks of a leg."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self.name = receiver.name

    async def page(self, message: PageMessage) -> None:
        """Posts the message, see Pager.page."""
        async with open_session() as session:
            reason = await post(
                session, self._receiver, message.id, body=message.to_json(), content_type="application/json"
            )
        if reason:
            raise PageFailed(reason)


def pagers(command: Sequence[str], webhooks: Path | None) -> list[Pager]:
    """The configured pagers. Raises CommandFailed if the file of webhooks is unusable."""
    configured: list[Pager] = [CommandPager(command)] if command else []
    if webhooks is not None:
        try:
            configured += map(WebhookPager, receivers.read(webhooks))
        except FailedPrecondition as error:
            raise CommandFailed(error.reason, MISUSED) from None
    return configured


async def page_all(pagers: Sequence[Pager], message: PageMessage) -> bool:
    """Tries all pagers concurrently. Returns whether at least one delivered the message."""

    async def deliver(pager: Pager) -> bool:
        try:
            await pager.page(message)
        except PageFailed as failed:
            logger().critical("page_failed", pager=pager.name, page_id=message.id, reason=str(failed))
            return False
        logger().info("page_delivered", pager=pager.name, page_id=message.id)
        return True

    return any(await asyncio.gather(*map(deliver, pagers)))


def trial_message(now_ms: int) -> PageMessage:
    """A page of the kind TEST, by which people see that a pager works. `now_ms` is wall time, milliseconds since 1970 UTC."""
    return PageMessage(
        id=hash_id("page", "test", now_ms),
        kind="TEST",
        text="Tandem: this is a test of the pager; nothing is wrong",
        outage_id="",
        since=times.to_rfc3339(now_ms),
        last_seen="",
        not_answering=(),
    )
