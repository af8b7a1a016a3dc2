"""Redirects within the console: only to an absolute path of this origin, and to the identity provider."""

from __future__ import annotations

import re

from aiohttp import web

HOME = "/"
MAX_CHARS = 2_048
_VISIBLE_ASCII = re.compile(r"/[!-\[\]-~]*")
"""Path of printable ASCII without space and backslash: browsers drop tabs and line ends, and read a backslash as a slash."""


def is_own_path(text: str) -> bool:
    """Returns whether a browser that is sent to `text` stays on this origin.

    That needs one leading slash, no control character, no backslash, and no empty segment before the query: a browser reads
    `//host`, `/\\host` and `/<TAB>/host` as the address of another host.
    """
    path = re.split(r"[?#]", text, maxsplit=1)[0]
    return len(text) <= MAX_CHARS and _VISIBLE_ASCII.fullmatch(text) is not None and "//" not in path


def own_path(text: str) -> str:
    """Returns `text` if it is a path of this origin, else the home page."""
    return text if is_own_path(text) else HOME


def see_other(path: str) -> web.Response:
    """Makes the answer that sends a browser by GET to a path of this origin, or to the home page if `path` leads elsewhere."""
    return web.Response(status=303, headers={"Location": own_path(path)})


def to_provider(address: str) -> web.Response:
    """Makes the answer that sends a browser to the identity provider, whose address the caller has checked."""
    return web.Response(status=303, headers={"Location": address})
