"""The tutorials do what they say: their very code blocks run on a clean clone (make test-tutorials). Each prints its total time."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tutorials import Reader, blocks_of, matches

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "tutorials"
FIRST_BREACH_WITHIN_S = 180.0
"""Maximum time of the first tutorial after set-up, on an idle machine, seconds. Printed, not asserted."""
BUILDS_ON = {
    "first-partner-client": ("first-breach",),
    "first-partner-client-in-node": ("first-breach",),
    "first-partner-client-in-java": ("first-breach", "first-partner-client"),
    "first-back-test": ("first-breach",),
    "first-breach": (),
}
"""Pages whose set-up and files a page needs."""
NEEDS = {
    "first-partner-client-in-node": ("node", "npm"),
    "first-partner-client-in-java": ("javac", "protoc", "grpc_java_plugin", "/usr/lib/*/jni/libnetty-tcnative.so"),
}
"""Programs and files that a page says you need, and that aren't on every machine."""

OBSERVERS = {
    "first-breach": {"tandem incidents": (sys.executable, "-m", "tests.support.see_incident", "http://127.0.0.1:7408")},
}
"""What a reader does by hand, such as signing in at the console."""

pytestmark = [pytest.mark.tutorial, pytest.mark.timeout(3600)]


def _is_installed(name: str) -> bool:
    return any(Path("/").glob(name[1:])) if name.startswith("/") else shutil.which(name) is not None


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean clone of what is committed, with the name that the pages give it."""
    folder = tmp_path_factory.mktemp("tutorials") / "tandem"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(folder)], check=True)
    return folder


@pytest.fixture
def reader(clone: Path) -> Iterator[Reader]:
    with Reader(clone) as reader:
        yield reader


@pytest.mark.parametrize("name", sorted(BUILDS_ON))
def test_a_tutorial_does_what_it_says(
    name: str, clone: Path, reader: Reader, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = [program for program in NEEDS.get(name, ()) if not _is_installed(program)]
    if missing:
        pytest.skip(f"{name} was not run: {', '.join(missing)} isn't installed")
    for other in BUILDS_ON[name]:
        reader.follow(PAGES / f"{other}.md", only_set_up=True)
        reader.folder = clone
    reader.set_up_s = 0.0
    reader.follow(PAGES / f"{name}.md", observers=OBSERVERS.get(name, {}))
    with capsys.disabled():
        limit = f" (at most {FIRST_BREACH_WITHIN_S:.0f} s on an idle machine)" if name == "first-breach" else ""
        print(f"\n{name}: set-up {reader.set_up_s:.0f} s, then {reader.took_s:.0f} s{limit}")


def test_each_tutorial_is_tested() -> None:
    pages = {page.stem for page in PAGES.glob("*.md")} - {"index"}
    assert pages == set(BUILDS_ON)
    assert all(any(block.language == "sh" for block in blocks_of(PAGES / f"{name}.md")) for name in pages)


@pytest.mark.parametrize(
    ("expected", "printed", "fits"),
    [
        ("a ... d", "a b c\nd", True),
        ("...\nends", "begins\nends", True),
        ("1  ACCEPTED", "1 ACCEPTED", True),
        ("a b", "a c", False),
        ("stored", "STORED", False),
    ],
)
def test_dots_stand_for_anything(expected: str, printed: str, fits: bool) -> None:
    assert matches(expected, printed) is fits
