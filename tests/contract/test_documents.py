"""The documents keep their shape: links resolve, pages and lines are short, generated pages are fresh, how-to pages hold no program."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from services.common.messaging import flow
from services.common.settings import CommonSettings
from services.geofence.domain.demands import AlertKind
from tests.support.documents import FENCE, ROOT, documents
from tools.reference import log_events, markdown
from tools.reference.__main__ import PAGES
from tools.reference.settings import OTHERS, SECTIONS, own_fields, variable

DOCS, HOW_TO = ROOT / "docs", ROOT / "docs" / "how-to"
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s#]*)(#[^)\s]*)?\)")
SEPARATOR = re.compile(r"^\s*\|[-:| ]+\|\s*$")
ITEM = re.compile(r"^(- |\d+\. )")
PROGRAM = re.compile(r"^\s*(import|from \w+ import|def|class|for .*;? do|while|if) ", re.MULTILINE)


def without_code(text: str) -> str:
    """Text without its fenced blocks and code."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """Anchors of the headings of a page, as GitHub and MkDocs make them."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        names.add(f"{slug}-{found[slug]}" if slug in found else slug)
        found[slug] = found.get(slug, 0) + 1
    return names


def test_no_link_is_broken() -> None:
    broken = []
    texts = {path: path.read_text("utf-8") for path in documents()}
    for path, text in texts.items():
        for link, anchor in LINK.findall(without_code(text)):
            if "://" in link or link.startswith("mailto:"):
                continue
            target = (path.parent / link).resolve() if link else path
            known = anchors(texts[target]) if target in texts else set()
            if not target.exists() or (anchor and target.suffix == ".md" and anchor.removeprefix("#") not in known):
                broken.append(f"{path.relative_to(ROOT)}: {link}{anchor}")
    assert broken == []


def test_no_source_names_a_document_that_does_not_exist() -> None:
    command = [
        "git",
        "grep",
        "-hoE",
        r"\bdocs/[A-Za-z0-9_/.-]+\.(md|svg|json)",
        "--",
        ":!CHANGELOG.md",
        ":!*.md",
        ":!tests",
    ]
    named = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    assert len(named) > 20 and sorted({name for name in named if not (ROOT / name).exists()}) == []


def test_pages_and_lines_are_short() -> None:
    texts = {path.relative_to(ROOT): path.read_text("utf-8").splitlines() for path in documents()}
    assert len(texts[Path("README.md")]) <= 150
    assert [str(path) for path, lines in texts.items() if any(len(line) > markdown.MAX_LINE for line in lines)] == []
    pages = {path: texts[path.relative_to(ROOT)] for path in HOW_TO.rglob("*.md")}
    assert len(pages) > 40 and [page.name for page, lines in pages.items() if len(lines) > 80] == []


def _unreadable(path: Path) -> list[str]:
    """Lines that the site's Markdown shows otherwise than GitHub's does."""
    lines = FENCE.sub(lambda block: re.sub(r"[^\n]+", "code", block[0]), path.read_text("utf-8")).splitlines()
    wrong = []
    for number, (before, line) in enumerate(zip(["", *lines], lines, strict=False), 1):
        follows_text = before.strip() and not before.startswith((" ", "#", "code")) and not ITEM.match(before)
        after = lines[number] if number < len(lines) else ""
        if ITEM.match(line) and follows_text:
            wrong.append(f"{path.name}:{number}: a list needs an empty line before it")
        if line.lstrip().startswith("|") and not before.lstrip().startswith("|") and not SEPARATOR.match(after):
            wrong.append(f"{path.name}:{number}: a table needs a header")
    return wrong


def test_lists_and_tables_are_shown_as_such_by_the_site() -> None:
    pages = [path for path in documents() if path.is_relative_to(DOCS)]
    # Within a list the site asks for four blanks before a table or block of code.
    shallow = [
        f"{path.name}: {line}"
        for path in pages
        for line in re.findall(r"^ {1,3}(?:\||```).*$", path.read_text("utf-8"), re.MULTILINE)
    ]
    assert [fault for path in pages for fault in _unreadable(path)] + shallow == []


def test_a_how_to_page_holds_commands_and_no_program() -> None:
    programs = [
        page.name
        for page in HOW_TO.rglob("*.md")
        for language, text in FENCE.findall(page.read_text("utf-8"))
        if language.strip() not in ("", "sh", "text") or PROGRAM.search(text)
    ]
    assert programs == []


HEAD = re.compile(r"^(?:Alert rules|Log events): [^.]*\.(?:\s+Log events: [^.]*\.)?$", re.MULTILINE)
"""Line or lines below the title of a page of the runbook, with the alert rules and log events that lead to it."""


def test_a_page_of_the_runbook_explains_each_symptom_that_it_names() -> None:
    silent = []
    for page in (HOW_TO / "respond").glob("*.md"):
        text = page.read_text("utf-8")
        head = "\n".join(HEAD.findall(text))
        body = HEAD.sub("", text)
        rules, events = re.findall(r"`([A-Z]\w+)`", head), re.findall(r"`([a-z]\w+)`", head)
        # The whole page is about a symptom that it names alone.
        named = [*(rules if len(rules) > 1 else ()), *(events if len(events) > 1 else ())]
        silent += [f"{page.name}: {name}" for name in named if f"`{name}`" not in body]
    assert silent == []


def test_the_index_of_the_runbook_leads_to_each_page() -> None:
    folder = HOW_TO / "respond"
    linked = {link for link, _ in LINK.findall((folder / "index.md").read_text("utf-8"))}
    assert sorted({page.name for page in folder.glob("*.md")} - {"index.md"} - linked) == []


def test_the_runbook_says_for_each_reader_what_its_dead_letters_mean() -> None:
    rows = re.findall(r"^\|(.*?)\|", (HOW_TO / "respond" / "dead-letters.md").read_text("utf-8"), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert sorted(flow.DEAD_LETTER_USERS.keys() - named) == []


def test_the_index_of_decisions_lists_each_one_once() -> None:
    listed = re.findall(
        r"^\| \[(\d+)\]\((\d{4})-[^)]*\.md\)", (DOCS / "adr" / "README.md").read_text("utf-8"), re.MULTILINE
    )
    assert all(int(number) == int(name) for number, name in listed)
    assert sorted(name for _, name in listed) == sorted(path.name[:4] for path in (DOCS / "adr").glob("0*.md"))


def test_the_page_of_alerts_names_each_kind() -> None:
    page = (DOCS / "reference" / "alerts.md").read_text("utf-8")
    assert [kind.value for kind in AlertKind if not re.search(rf"\b{kind.value}\b", page)] == []


def test_the_pages_of_benchmarks_name_each_benchmark_and_no_other() -> None:
    """A study that isn't kept is named with the command and the commit that made its figures."""
    modules = (path for path in (ROOT / "bench").glob("*.py") if "__main__" in path.read_text("utf-8"))
    commands = {path.stem for path in modules} | {path.parent.name for path in (ROOT / "bench").glob("*/__main__.py")}
    paragraphs = [
        paragraph for path in (DOCS / "benchmarks").glob("*.md") for paragraph in path.read_text("utf-8").split("\n\n")
    ]
    former = [paragraph for paragraph in paragraphs if "This study isn't kept" in paragraph]
    assert all(re.search(r"python -m bench\.\w+.*commit [0-9a-f]{8}", text, re.DOTALL) for text in former)
    kept = "\n".join(paragraph for paragraph in paragraphs if paragraph not in former)
    assert set(re.findall(r"\bbench\.([a-z_]+)", kept)) == commands


def test_the_index_of_benchmarks_leads_to_each_page() -> None:
    folder = DOCS / "benchmarks"
    linked = {link for link, _ in LINK.findall((folder / "index.md").read_text("utf-8"))}
    assert sorted({page.name for page in folder.glob("*.md")} - {"index.md"} - linked) == []


@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_generated_page_is_fresh(name: str) -> None:
    assert (DOCS / "reference" / name).read_text("utf-8") == PAGES[name](), "stale: run `make reference`"


def test_each_log_event_has_a_text_and_each_text_its_event() -> None:
    assert log_events.faults() == []


def test_each_setting_is_described_where_it_is_read() -> None:
    page = (DOCS / "reference" / "settings.md").read_text("utf-8")
    described = {name for _, settings, _ in SECTIONS for name in own_fields(settings)}
    declared = {name for kind in _all_settings(CommonSettings) for name in kind.model_fields} - {"leg"}
    assert declared == described and all(f"`{variable(name)}`" in page for name in declared)
    folders = [ROOT / name for name in ("services", "bench", "tests")]
    sources = "\n".join(path.read_text("utf-8") for folder in folders for path in folder.rglob("*.py"))
    others = {name for names, _, _ in OTHERS for name in re.findall(r"`(\w+)`", names)}
    unread = {name for name in others - {variable(name) for name in declared} if f'"{name}"' not in sources}
    # The library of OpenTelemetry and Python's ssl read these.
    assert unread <= {"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "SSL_CERT_FILE"}


def _all_settings(kind: type[CommonSettings]) -> list[type[CommonSettings]]:
    return [kind, *(found for child in kind.__subclasses__() for found in _all_settings(child))]
