"""Version and commit of the Tandem that runs, as `tandem --version` and each bundle of evidence state them."""

from __future__ import annotations

import os
import re
import subprocess
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""Folder of the packages `services` and `tandem`: a checkout, an image's folder, or a site's packages."""
STATED = "BUILD"
"""File that an image has in this folder: a line with the version and a line with the commit."""
SOURCES = ("services", "protos", "requirements-run.lock")
"""Paths of a checkout that decide what the commands do."""
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_PATIENCE_S = 20.0


def software(root: Path = ROOT) -> str:
    """Version and commit, such as "0.1.0 (commit 826ed84f...)".

    The commit is that of the image, or of the checkout, with "and changes" if its sources differ from it. It is "unknown" where
    neither says it.
    """
    stated = root / STATED
    if stated.is_file():
        version, commit = [*stated.read_text().splitlines(), "", ""][:2]
        return _named(version, commit if _COMMIT.fullmatch(commit) else "")
    return _named(metadata.version("tandem"), _commit_of_checkout(root))


def _named(version: str, commit: str) -> str:
    return f"{version} (commit {commit or 'unknown'})"


def _commit_of_checkout(root: Path) -> str:
    """The commit that a folder has checked out, with "and changes" if its sources differ; empty if it is no checkout, or git fails."""
    if not (root / ".git").exists():
        return ""  # git would name a repository further up, which isn't this program's
    try:
        commit = _git(root, "rev-parse", "HEAD").strip()
        changed = _git(root, "status", "--porcelain", "--", *SOURCES).strip()
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit + (" and changes" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    # Within a hook of another repository, git's variables name that one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(
        ("git", "--no-optional-locks", "-C", str(root), *arguments),
        env=environment,
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
        check=True,
    ).stdout
