"""Templates of the pages in their light and dark themes, and the files of static/, which Vite builds and which are packaged."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from aiohttp import web

from services.common.observability.spans import duration
from services.common.times import KOREA
from services.console.pages.guard import HOME, LANGUAGE_COOKIE, Ask, see_other
from services.console.pages.texts import LANGUAGES, TEXTS

FOLDER = Path(__file__).parents[1]
STATIC = FOLDER / "static"
_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".pmtiles": "application/octet-stream",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
}

_templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(FOLDER / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def _clock(ms: int | None) -> str:
    """Formats a time in Korea's time zone, to the second; with its year unless that is the present one."""
    if ms is None:
        return ""
    at = datetime.fromtimestamp(ms / 1000, KOREA)
    return at.strftime("%m-%d %H:%M:%S" if at.year == datetime.now(KOREA).year else "%Y-%m-%d %H:%M:%S")


def time_of_day(ms: int) -> str:
    """Formats the time of day in Korea's time zone, to the second."""
    return datetime.fromtimestamp(ms / 1000, KOREA).strftime("%H:%M:%S")


def _day(ms: int) -> str:
    """Formats a day and a time in Korea's time zone, to the minute."""
    return datetime.fromtimestamp(ms / 1000, KOREA).strftime("%Y-%m-%d %H:%M")


def _exact(ms: int | None) -> str:
    return "" if ms is None else _clock(ms) + f".{ms % 1000:03d}"


def _local(ms: int) -> str:
    """Formats a time in Korea's time zone as a form's field of the type datetime-local has it."""
    return datetime.fromtimestamp(ms / 1000, KOREA).strftime("%Y-%m-%dT%H:%M")


def local_second(ms: int) -> str:
    """Formats a time in Korea's time zone, to the second, as a form's field of the type datetime-local has it."""
    return datetime.fromtimestamp(ms / 1000, KOREA).strftime("%Y-%m-%dT%H:%M:%S")


def ms_of_local(text: str) -> int:
    """Parses a form's time: in Korea's time zone, unless the text has an offset of its own. Returns milliseconds since 1970 UTC.

    Raises ValueError.
    """
    at = datetime.fromisoformat(text)
    return int((at if at.tzinfo else at.replace(tzinfo=KOREA)).timestamp() * 1000)


def _about(us: int) -> str:
    """Formats a duration in microseconds beside a deadline: to a tenth of a second, below 1 s in milliseconds."""
    return f"{us / 1e6:.1f} s" if us >= 1_000_000 else f"{us / 1000:.0f} ms"


_templates.filters |= {
    "clock": _clock,
    "day": _day,
    "time_of_day": time_of_day,
    "exact": _exact,
    "local": _local,
    "took": duration,
    "about": _about,
}


def page(ask: Ask, template: str, status: int = 200, **values: Any) -> web.Response:
    """Renders a page from a template. All values are escaped."""
    common = {
        "t": ask.texts,
        "lang": ask.texts.language,
        "back": ask.request.path_qs,
        "theme": chosen_theme(ask.request),
        "user": ask.session.user,
        "csrf": ask.csrf,
        "badge": ask.badge,
        "incident_bar": ask.bar,
    }
    if ask.bar is not None:
        common["bar_data"] = {"texts": ask.texts.bar(), "user": bar_user(ask)}
    text = _templates.get_template(template).render({**common, "path": ask.request.path, **values})
    return web.Response(text=text, content_type="text/html", status=status)


def error_page(ask: Ask, status: int, detail: str) -> web.Response:
    """Renders the page of an error in the user's language. `detail` is the English text of the console or of a service."""
    reason = f"error_{status}"
    return page(ask, "error.html", status=status, reason=reason if reason in TEXTS else "error_other", detail=detail)


def bar_user(ask: Ask) -> str:
    """Returns the name of the bar's stream of a user: pages of one user share it, and no others."""
    return f"{ask.user.role.value} {ask.user.name}"


def island(ask: Ask, tiles: str) -> dict[str, Any]:
    """Returns the data for a page's scripts. `tiles` is the address of a base map, or empty for the console's own."""
    return {
        "csrf": ask.csrf,
        "role": ask.user.role.value,
        "texts": ask.texts.island(),
        "tiles": tiles or "/static/korea.pmtiles",
        "language": ask.texts.language,
    }


async def static(ask: Ask) -> web.StreamResponse:
    """Serves a file of static/. Byte ranges are supported, as the base map needs them."""
    path = STATIC / ask.request.match_info["name"]
    content_type = _TYPES.get(path.suffix)
    if content_type is None or path.parent != STATIC or not path.is_file():
        raise web.HTTPNotFound
    return web.FileResponse(path, headers={"Content-Type": content_type, "Cache-Control": "no-cache"})


THEME_COOKIE = "tandem_theme"
THEMES = ("light", "dark")
CHOICE_LASTS_S = 365 * 86_400


def chosen_theme(request: web.Request) -> str:
    """Returns the theme that this browser's user chose, one of THEMES; empty for the browser's own preference."""
    theme = request.cookies.get(THEME_COOKIE, "")
    return theme if theme in THEMES else ""


async def choose_language(ask: Ask) -> web.StreamResponse:
    """Switches to the other language."""
    other = LANGUAGES[1 - LANGUAGES.index(ask.texts.language)]
    response = see_other(ask.form.get("back", HOME))
    response.set_cookie(LANGUAGE_COOKIE, other, httponly=True, samesite="Strict", max_age=CHOICE_LASTS_S)
    return response


async def choose_theme(ask: Ask) -> web.StreamResponse:
    """Keeps the theme that the form names. Raises HTTPBadRequest if there is no such theme."""
    theme = ask.form.get("theme", "")
    if theme not in THEMES:
        raise web.HTTPBadRequest(text=f'400: theme: "{theme}" is not one of {", ".join(THEMES)} (example: dark)')
    response = see_other(ask.form.get("back", HOME))
    response.set_cookie(THEME_COOKIE, theme, httponly=True, samesite="Strict", max_age=CHOICE_LASTS_S)
    return response
