"""Light or dark pages: the browser's own preference, unless its user chose. The browser keeps the choice as a cookie."""

from __future__ import annotations

from aiohttp import web

from services.console.guard import Ask
from services.console.redirects import HOME, see_other

THEME_COOKIE = "tandem_theme"
THEMES = ("light", "dark")
CHOICE_LASTS_S = 365 * 86_400


def chosen_theme(request: web.Request) -> str:
    """Returns the theme that this browser's user chose, one of THEMES; empty for the browser's own preference."""
    theme = request.cookies.get(THEME_COOKIE, "")
    return theme if theme in THEMES else ""


async def choose_theme(ask: Ask) -> web.StreamResponse:
    """Keeps the theme that the form names. Raises HTTPBadRequest if there is no such theme."""
    theme = ask.form.get("theme", "")
    if theme not in THEMES:
        raise web.HTTPBadRequest(text=f'400: theme: "{theme}" is not one of {", ".join(THEMES)} (example: dark)')
    response = see_other(ask.form.get("back", HOME))
    response.set_cookie(THEME_COOKIE, theme, httponly=True, samesite="Strict", max_age=CHOICE_LASTS_S)
    return response
