"""Reference of the log events: name, level and service from the sources, the meaning from log_events.toml, pages from the runbook."""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from tools.reference.markdown import codes, page, table
from tools.reference.sources import ROOT, called, calls, service_of, text_of

MEANINGS = Path(__file__).parent / "log_events.toml"
RESPOND = ROOT / "docs" / "how-to" / "respond"
COMPUTED = ("assignment_", "canary_")
"""Beginnings of names that are put together where they are logged."""
LEVELS = ("debug", "info", "warning", "error", "critical", "exception")


class EventText(NamedTuple):
    """What log_events.toml says of events that belong together."""

    names: tuple[str, ...]
    level: str
    service: str
    meaning: str


def texts() -> list[EventText]:
    """The texts, in the order of the file."""
    content = tomllib.loads(MEANINGS.read_text("utf-8"))["event"]
    return [EventText(tuple(row["names"]), row["level"], row["service"], row["meaning"]) for row in content]


def literal_events() -> dict[str, tuple[set[str], set[str]]]:
    """Levels and services of each event whose name is written at the call of a logger."""
    found: dict[str, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for path, call in calls():
        name = text_of(call.args[0]) if call.args else None
        if called(call) in LEVELS and name and _is_logger(call) and re.fullmatch(r"[a-z_]+", name):
            levels, services = found[name]
            levels.add(called(call))
            services.add(service_of(path))
    return dict(found)


def _is_logger(call: object) -> bool:
    value = getattr(getattr(call, "func", None), "value", None)
    return getattr(getattr(value, "func", None), "id", "") == "logger" or getattr(value, "id", "") in ("log", "logger")


def faults() -> list[str]:
    """Events of the sources that no text describes, described ones that no source names, and levels that differ."""
    described = {name: text for text in texts() for name in text.names}
    literal = literal_events()
    everything = "\n".join(path.read_text("utf-8") for path in (ROOT / "services").rglob("*.py"))
    wrong = [f"{name}: no meaning in {MEANINGS.name}" for name in sorted(literal.keys() - described.keys())]
    for name, text in described.items():
        if name in literal:
            missing = {level for level in literal[name][0] if level not in text.level}
            wrong += [f"{name}: is logged as {level}, described as {text.level}" for level in sorted(missing)]
        elif f'"{name}"' not in everything and not name.startswith(COMPUTED):
            wrong.append(f"{name}: no source logs it")
    return wrong


def _pages() -> dict[str, list[tuple[str, str]]]:
    """File and title of each page of the runbook that names an event as its symptom."""
    pages: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for path in sorted(RESPOND.glob("*.md")):
        text = path.read_text("utf-8")
        title = text.partition("\n")[0].removeprefix("# ")
        for line in re.findall(r"Log events: ([^.]*)\.", text):
            for name in re.findall(r"`([a-z_]+)`", line):
                pages[name].append((path.name, title))
    return pages


def render() -> str:
    """The page. Raises ValueError if a text and the sources differ."""
    if wrong := faults():
        raise ValueError("\n".join(wrong))
    pages = _pages()
    rows = []
    for text in texts():
        linked = {found for name in text.names for found in pages.get(name, [])}
        missing = sorted(found for found in linked if found[0] not in text.meaning)
        to_do = "; ".join(f"[{title}](../how-to/respond/{file})" for file, title in missing)
        grave = f"**{text.level}**" if {"error", "critical"} & set(text.level.split(", ")) else text.level
        rows.append((codes(text.names), grave, text.service, text.meaning, to_do))
    introduction = (
        "Logs are JSON lines with the fields `event`, `level`, `ts` and those of the event: ids, counts and reasons, no name, number "
        "or position.\n"
        "The last column is the page of the runbook for it."
    )
    return page("Log events", introduction, table(("event", "level", "service", "meaning", "what to do"), rows))
