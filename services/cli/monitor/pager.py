"""How somebody is woken: by a program, or by a signed webhook. Neither goes through the mesh, which may be what is broken."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import aiohttp

from services.cli.failure import MISUSED, CommandFailed
from services.common.observability.telemetry import logger
from services.common.privacy import signing
from services.common.rpc.errors import FailedPrecondition
from services.dispatch.exchange import receivers
from services.dispatch.exchange.receivers import Receiver

WITHIN_S = 10.0
"""How long a pager may take."""


@dataclass(frozen=True, slots=True)
class PageMessage:
    """What whoever is on call gets. No person of the mesh is in it."""

    id: str
    """The same each time this page is tried."""
    kind: str
    """MISSING, STILL_MISSING or BACK."""
    text: str
    """One line, fit for a text message."""
    outage_id: str
    """The same for all pages of one outage."""
    since: str
    """When the first missing canary was sent, RFC 3339."""
    last_seen: str
    """How far the newest canary came that has had its time."""
    not_answering: tuple[str, ...]
    """Parts of the mesh that don't say that they work."""

    def to_json(self) -> bytes:
        """As it is handed over."""
        return json.dumps(asdict(self), ensure_ascii=False).encode()


class PageFailed(Exception):
    """Nobody was told; the reason is fit for a log."""


class Pager(Protocol):
    """A way to wake somebody."""

    name: str

    async def page(self, message: PageMessage) -> None:
        """Returns once the message was taken. Raises PageFailed."""


class CommandPager:
    """A program: it gets the message as JSON on standard input, and its exit code 0 says that the message was taken."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = tuple(command)
        self.name = Path(self._command[0]).name

    async def page(self, message: PageMessage) -> None:
        """As Pager.page."""
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
            raise PageFailed(f"no end after {WITHIN_S:.0f} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise PageFailed(f"exit code {process.returncode}")


class WebhookPager:
    """A webhook, signed as a leg's are."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self.name = receiver.name

    async def page(self, message: PageMessage) -> None:
        """As Pager.page."""
        body, timestamp_s = message.to_json(), int(time.time())
        headers = {
            "Content-Type": "application/json",
            signing.ID_HEADER: message.id,
            signing.TIMESTAMP_HEADER: str(timestamp_s),
            signing.SIGNATURE_HEADER: signing.signatures(self._receiver.keys, timestamp_s, message.id, body),
        }
        timeout = aiohttp.ClientTimeout(total=WITHIN_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
                session.post(self._receiver.url, data=body, headers=headers, allow_redirects=False) as answer,
            ):
                if not 200 <= answer.status < 300:
                    raise PageFailed(f"status {answer.status}")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise PageFailed(type(error).__name__) from None


def pagers(command: Sequence[str], webhooks: Path | None) -> list[Pager]:
    """Those that are configured. Raises CommandFailed where the file of webhooks can't be used."""
    found: list[Pager] = [CommandPager(command)] if command else []
    if webhooks is not None:
        try:
            found += map(WebhookPager, receivers.read(webhooks))
        except FailedPrecondition as error:
            raise CommandFailed(error.reason, MISUSED) from None
    return found


async def page_all(pagers: Sequence[Pager], message: PageMessage) -> bool:
    """Tries all at once; True where somebody was told."""

    async def told(pager: Pager) -> bool:
        try:
            await pager.page(message)
        except PageFailed as failed:
            logger().critical("page_failed", pager=pager.name, page_id=message.id, reason=str(failed))
            return False
        logger().info("page_delivered", pager=pager.name, page_id=message.id)
        return True

    return any(await asyncio.gather(*map(told, pagers)))
