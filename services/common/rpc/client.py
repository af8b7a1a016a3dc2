"""Mutual TLS on the client's side: whose certificate a call goes out with, and certificates that are replaced without a restart.

A server asks for its files at each connection (rpc.py). gRPC's client keeps those that it was made with, so a channel is made anew here
when the files have changed: calls that are under way end on the old one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
import grpc.aio

from services.common.rpc.certificates import Files
from services.common.rpc.server import CHANNEL_OPTIONS, Metadata, bearer
from services.common.settings import CommonSettings, addresses_of, is_loopback

CHECK_INTERVAL_S = 1.0
OLD_CHANNEL_S = 300.0
"""How long calls may go on over a channel whose certificate was replaced."""
Options = tuple[tuple[str, str | int], ...]
IDENTITY = "tandem-identity"
"""Metadata that names whose certificate a call goes out with; it stays in this process."""


class _Renewed:
    """The channel of one identity, made anew when its files have changed."""

    def __init__(
        self, target: str, options: Options, files: Files, retired: Callable[[grpc.aio.Channel], None]
    ) -> None:
        self._target, self._options, self._files, self._retired = target, options, files, retired
        self._stamp, self._looked_s = files.stamp(), asyncio.get_running_loop().time()
        self.channel = self._open()

    def current(self) -> grpc.aio.Channel:
        """The channel for the next call."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._looked_s >= CHECK_INTERVAL_S:
            self._looked_s = now_s
            try:
                stamp = self._files.stamp()
                if stamp != self._stamp:
                    old, self.channel, self._stamp = self.channel, self._open(), stamp
                    self._retired(old)
            except OSError:
                pass  # being replaced at this moment: the next look sees it
        return self.channel

    def _open(self) -> grpc.aio.Channel:
        cert, key, authority = (file.read_bytes() for file in self._files)
        credentials = grpc.ssl_channel_credentials(authority, key, cert)
        return grpc.aio.secure_channel(self._target, credentials, options=self._options)


class _Channels:
    """Looks like one channel to stubs; each call goes out over that of the identity which its metadata names."""

    def __init__(self, target: str, options: Options, find: Callable[[str], Files], default: str) -> None:
        self._target, self._options, self._find, self._default = target, options, find, default
        self._of: dict[str, _Renewed] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def pick(self, metadata: Sequence[tuple[str, str | bytes]]) -> grpc.aio.Channel:
        identity = str(dict(metadata).get(IDENTITY, self._default))
        if identity not in self._of:
            self._of[identity] = _Renewed(self._target, self._options, self._find(identity), self._retire)
        return self._of[identity].current()

    def _retire(self, channel: grpc.aio.Channel) -> None:
        closing = asyncio.ensure_future(channel.close(OLD_CHANNEL_S))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        for one in self._closing:
            one.cancel()
        await asyncio.gather(
            *self._closing, *(one.channel.close() for one in self._of.values()), return_exceptions=True
        )

    def __getattr__(self, kind: str) -> Any:
        """unary_unary and its sisters, as generated stubs call them."""

        def method(*where: Any, **how: Any) -> Any:
            made: dict[grpc.aio.Channel, Any] = {}

            def call(*request: Any, metadata: Sequence[tuple[str, str | bytes]] = (), **more: Any) -> Any:
                channel = self.pick(metadata or ())
                if channel not in made:
                    made.clear()
                    made[channel] = getattr(channel, kind)(*where, **how)
                return made[channel](*request, metadata=[one for one in metadata or () if one[0] != IDENTITY], **more)

            return call

        if kind not in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            raise AttributeError(kind)
        return method


@asynccontextmanager
async def channel(
    target: str, find: Callable[[str], Files], default: str, server_name: str = "", *options: tuple[str, int]
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel for stubs with mutual TLS. `find` gives the files of an identity; `default` is that of calls that name none.

    `server_name` is the host that the server's certificate must name, where that isn't the target's.
    """
    override = (("grpc.ssl_target_name_override", server_name),) if server_name else ()
    channels = _Channels(target, (*CHANNEL_OPTIONS, *override, *options), find, default)
    try:
        yield cast(grpc.aio.Channel, channels)
    finally:
        await channels.close()


@asynccontextmanager
async def connection(
    settings: CommonSettings, target: str, spiffe_id: str, *options: tuple[str, int]
) -> AsyncIterator[tuple[grpc.aio.Channel, Metadata]]:
    """A channel from one service to another, and the metadata of its calls: by this process's certificate, or on loopback by a
    development token for `spiffe_id`."""
    if settings.tls:
        # On loopback a certificate is of the host's name, however many addresses the target has.
        name = "localhost" if all(is_loopback(address) for address in addresses_of(target)) else ""
        async with channel(target, lambda _: settings.tls_files(), spiffe_id, name, *options) as one:
            yield one, ()
    else:
        async with grpc.aio.insecure_channel(target, options=(*CHANNEL_OPTIONS, *options)) as plain:
            yield plain, bearer(spiffe_id, settings.dev_secret)


def as_identity(spiffe_id: str) -> tuple[tuple[str, str], ...]:
    """Call metadata: goes out with this identity's certificate."""
    return ((IDENTITY, spiffe_id),)
