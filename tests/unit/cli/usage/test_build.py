"""The commit that bundles of evidence state: that of the image or of the checkout, and never a guess."""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from services.common import build

VERSION = metadata.version("tandem")
COMMIT = "826ed84f" * 5


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    return subprocess.run(
        ("git", "-C", str(folder), *who, *arguments), capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with one commit."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "services").mkdir()
    (tmp_path / "services" / "fold.py").write_text("VERSION = 1\n")
    (tmp_path / "notes.md").write_text("x\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "x")
    return tmp_path


def test_a_checkout_states_its_commit_and_whether_its_sources_were_changed(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert build.software(checkout) == f"{VERSION} (commit {commit})"
    (checkout / "notes.md").write_text("y\n")
    assert build.software(checkout) == f"{VERSION} (commit {commit})"
    (checkout / "services" / "new.py").write_text("")
    assert build.software(checkout) == f"{VERSION} (commit {commit} and changes)"
    (checkout / "services" / "new.py").unlink()
    (checkout / "services" / "fold.py").write_text("VERSION = 2\n")
    assert build.software(checkout) == f"{VERSION} (commit {commit} and changes)"


def test_a_folder_within_another_repository_states_no_commit(checkout: Path) -> None:
    inner = checkout / "site-packages"
    inner.mkdir()
    assert build.software(inner) == f"{VERSION} (commit unknown)"


def test_without_git_the_commit_is_unknown(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert build.software(checkout) == f"{VERSION} (commit unknown)"


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        (f"0.2.0\n{COMMIT}\n", f"0.2.0 (commit {COMMIT})"),
        ("0.2.0\nunknown\n", "0.2.0 (commit unknown)"),
        ("0.2.0\nmain\n", "0.2.0 (commit unknown)"),
        ("0.2.0\n", "0.2.0 (commit unknown)"),
    ],
)
def test_an_image_states_what_it_was_built_from(checkout: Path, stated: str, said: str) -> None:
    (checkout / build.STATED).write_text(stated)
    assert build.software(checkout) == said
