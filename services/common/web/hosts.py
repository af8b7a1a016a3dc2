"""Host names under which a service's pages are served. A foreign name that leads to the same address gets nothing (DNS rebinding)."""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import SplitResult, urlsplit

from aiohttp import web

from services.common.settings import LOOPBACK

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:[0-9]{1,5})?")


def check_host(request: web.Request, hosts: Collection[str]) -> None:
    """Raises HTTPMisdirectedRequest unless a request's Host is loopback or among `hosts`, and HTTPBadRequest if it is no host.

    An entry of `hosts` is a name or address as browsers send it: with its port, unless that is the scheme's own.
    """
    host = request.headers.get("Host", "")
    if not _HOST.fullmatch(host):
        raise web.HTTPBadRequest(text="400: Host: is no name or address with an optional port")
    name = parts_of(f"//{host}", "Host").hostname or ""
    if name not in LOOPBACK and host not in hosts:
        raise web.HTTPMisdirectedRequest(
            text="421: nothing is served under this name: use a configured address (TANDEM_PUBLIC_ORIGINS)"
        )


def parts_of(address: str, header: str) -> SplitResult:
    """Splits an address from a header. Raises HTTPBadRequest if the text isn't an address, such as `//[::1`."""
    try:
        return urlsplit(address)
    except ValueError:
        raise web.HTTPBadRequest(text=f"400: {header}: is no address") from None
