"""Client side of mutual TLS: the certificate of each call, and replaced certificates without a restart.

A gRPC server reads its certificate files at each connection (server.py). A gRPC client keeps the files with which its channel was
created. So a new channel is created here after the files have changed. Calls in progress finish on the old channel.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
import grpc.aio

from services.common.certificates import Files
from services.common.rpc.server import CHANNEL_OPTIONS, Metadata, bearer
from services.common.settings import CommonSettings, addresses_of, is_loopback

CHECK_INTERVAL_S = 1.0
"""Minimum interval of checks for replaced certificate files, seconds."""
OLD_CHANNEL_S = 300.0
"""Maximum time for calls in progress after the certificate of their channel was replaced, seconds."""
Options = tuple[tuple[str, str | int], ...]
IDENTITY = "tandem-identity"
"""Metadata key with the SPIFFE id whose certificate a call uses. It isn't sent to the server."""


class _Renewed:
    """Channel of an identity, recreated after the identity's files have changed."""

    def __init__(
        self, target: str, options: Options, files: Files, *, retired: Callable[[grpc.aio.Channel], None]
    ) -> None:
        self._target = target
        self._options = options
        self._files = files
        self._retired = retired
        self._stamp, self._checked_s = files.stamp(), asyncio.get_running_loop().time()
        self.channel = self._open()

    def current(self) -> grpc.aio.Channel:
        """Channel for the next call."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._checked_s >= CHECK_INTERVAL_S:
            self._checked_s = now_s
            try:
                stamp = self._files.stamp()
                if stamp != self._stamp:
                    old = self.channel
                    self.channel = self._open()
                    self._stamp = stamp
                    self._retired(old)
            except OSError:
                pass  # the files are being replaced at this moment: the next check sees them
        return self.channel

    def _open(self) -> grpc.aio.Channel:
        cert, key, authority = (file.read_bytes() for file in self._files)
        credentials = grpc.ssl_channel_credentials(authority, key, cert)
        return grpc.aio.secure_channel(self._target, credentials, options=self._options)


class _Channels:
    """Replacement for the channel of a stub. Each call goes over the channel of the identity that the call's metadata name."""

    def __init__(self, target: str, options: Options, find: Callable[[str], Files], *, default: str) -> None:
        self._target = target
        self._options = options
        self._find = find
        self._default = default
        self._by_identity: dict[str, _Renewed] = {}
        self._retirements: set[asyncio.Task[None]] = set()

    def pick(self, metadata: Sequence[tuple[str, str | bytes]]) -> grpc.aio.Channel:
        identity = str(dict(metadata).get(IDENTITY, self._default))
        if identity not in self._by_identity:
            self._by_identity[identity] = _Renewed(
                target=self._target, options=self._options, files=self._find(identity), retired=self._retire
            )
        return self._by_identity[identity].current()

    def _retire(self, channel: grpc.aio.Channel) -> None:
        retirement = asyncio.ensure_future(channel.close(OLD_CHANNEL_S))
        self._retirements.add(retirement)
        retirement.add_done_callback(self._retirements.discard)

    async def close(self) -> None:
        for retirement in self._retirements:
            retirement.cancel()
        await asyncio.gather(
            *self._retirements,
            *(renewed.channel.close() for renewed in self._by_identity.values()),
            return_exceptions=True,
        )

    def __getattr__(self, kind: str) -> Any:
        """Channel methods that generated stubs call: unary_unary, unary_stream, stream_unary and stream_stream."""

        def method(*arguments: Any, **options: Any) -> Any:
            callables: dict[grpc.aio.Channel, Any] = {}

            def call(*request: Any, metadata: Sequence[tuple[str, str | bytes]] = (), **more: Any) -> Any:
                channel = self.pick(metadata or ())
                if channel not in callables:
                    callables.clear()
                    callables[channel] = getattr(channel, kind)(*arguments, **options)
                sent = [(key, value) for key, value in metadata or () if key != IDENTITY]
                return callables[channel](*request, metadata=sent, **more)

            return call

        if kind not in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            raise AttributeError(kind)
        return method


@asynccontextmanager
async def channel(
    target: str,
    find: Callable[[str], Files],
    default: str,
    *,
    server_name: str = "",
    options: Sequence[tuple[str, int]] = (),
) -> AsyncIterator[grpc.aio.Channel]:
    """Opens a channel for stubs with mutual TLS, over which each call may use the certificate of another identity.

    `find` returns the certificate files of an identity. `default` is the identity of calls whose metadata name none. `server_name`
    is the host name that the server's certificate must have. If empty, the default, it is the target's host.
    """
    override = (("grpc.ssl_target_name_override", server_name),) if server_name else ()
    channels = _Channels(target=target, options=(*CHANNEL_OPTIONS, *override, *options), find=find, default=default)
    try:
        yield cast(grpc.aio.Channel, channels)
    finally:
        await channels.close()


@asynccontextmanager
async def connection(
    settings: CommonSettings, target: str, spiffe_id: str, *options: tuple[str, int], server_name: str = ""
) -> AsyncIterator[tuple[grpc.aio.Channel, Metadata]]:
    """Opens a channel from one service to another, and yields it with the metadata that each call needs.

    The calls use this process's certificate or, without certificates on loopback, a development token for `spiffe_id`. `server_name`
    is the host name in the server's certificate, for a target that is an IP address.
    """
    if settings.tls:
        # Certificates on loopback name localhost, while the target has IP addresses.
        name = "localhost" if all(is_loopback(address) for address in addresses_of(target)) else server_name
        async with channel(
            target, lambda _: settings.tls_files(), spiffe_id, server_name=name, options=options
        ) as secure:
            yield secure, ()
    else:
        async with grpc.aio.insecure_channel(target, options=(*CHANNEL_OPTIONS, *options)) as plain:
            yield plain, bearer(spiffe_id, settings.dev_secret)


def as_identity(spiffe_id: str) -> tuple[tuple[str, str], ...]:
    """Call metadata for a call with this identity's certificate."""
    return ((IDENTITY, spiffe_id),)
