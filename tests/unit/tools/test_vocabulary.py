"""The vocabulary check finds each kind of violation in a repository, and nothing in a clean repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools import vocabulary
from tools.vocabulary import Vocabulary, findings

SOUND = '''"""Ordinary English words may stand in prose: take one again, and rest if possible."""


class Position:
    """A GPS fix."""


def oldest(positions: list[Position]) -> Position:
    """The first position."""
    return positions[0]
'''


@pytest.fixture
def words() -> Vocabulary:
    return Vocabulary.read(vocabulary.TABLE)


def found(root: Path, words: Vocabulary, **files: str) -> set[tuple[str, str]]:
    """Kind and text of the findings in a repository of the given files (`services__a_py` is services/a.py)."""
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    for name, text in files.items():
        folder, _, base = name.rpartition("__")
        path = root / folder / ".".join(base.rsplit("_", 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    subprocess.run(["git", "add", "--all"], cwd=root, check=True)
    return {(finding.kind, finding.text) for finding in findings(root, words)}


def test_a_clean_repository_has_no_findings(tmp_path: Path, words: Vocabulary) -> None:
    assert found(tmp_path, words, services__a_py=SOUND, README_md="Take one again.\n") == set()


@pytest.mark.parametrize(
    ("name", "text", "finding"),
    [
        ("services__a_py", "for one in []:\n    pass\n", ("identifier", "one")),
        ("services__a_py", "def _tell() -> None: ...\n", ("identifier", "_tell")),
        ("services__a_py", "BATCH_MOST = 5\n", ("identifier", "BATCH_MOST")),
        ("services__a_py", "class ToldLater: ...\n", ("identifier", "ToldLater")),
        ("services__a_py", "x = f'{one}'\n", ("identifier", "one")),
        ("services__a_py", '"""Calls who~ever waits."""\n', ("phrase", "who~ever")),
        ("services__a_py", "# Made a~new at each start.\n", ("phrase", "a~new")),
        ("services__a_py", "x = f'a record in~ earnest: {1}'\n", ("phrase", "in~ earnest")),
        ("services__a_py", '"""Reads. Of~ which none is kept."""\n', ("phrase", "Of~ which")),
        ("protos__a_proto", "message A {\n  string told = 1;\n}\n", ("identifier", "told")),
        ("protos__a_proto", "// As the~ makers say.\n", ("phrase", "the~ makers")),
        ("a_ts", "const told = 'x'; // fine\n", ("identifier", "told")),
        ("docs__a_md", "# A page\n\nIt is made a~new.\n", ("phrase", "a~new")),
        ("k8s__a_yaml", "# For who~ever runs it.\nkind: List\n", ("phrase", "who~ever")),
        ("tools__a_toml", "text = 'it begins a~new'\n", ("phrase", "a~new")),
        ("Makefile", "all: ## make it a~new\n", ("phrase", "a~new")),
    ],
)
def test_each_kind_of_violation_is_found(
    tmp_path: Path, words: Vocabulary, name: str, text: str, finding: tuple[str, str]
) -> None:
    # The check reads this file, too, so a ~ hides its phrases here.
    kind, violation = finding
    assert found(tmp_path, words, **{name: text.replace("~", "")}) == {(kind, violation.replace("~", ""))}


def test_a_class_name_may_exist_twice_in_services_only_if_the_table_lists_it(tmp_path: Path, words: Vocabulary) -> None:
    twice = {
        "services__a_py": "class Unlisted: ...\n",
        "services__b_py": "class Unlisted: ...\n",
        "tests__c_py": "class Unlisted: ...\n",
    }
    assert found(tmp_path, words, **twice) == {("class", "Unlisted")}


def test_a_table_that_allows_too_many_pairs_of_classes_is_refused(tmp_path: Path) -> None:
    table = vocabulary.TABLE.read_text("utf-8")
    names = ", ".join(f'"C{number}"' for number in range(vocabulary.MAX_PAIRS + 1))
    path = tmp_path / "vocabulary.toml"
    path.write_text(table.partition("[classes]")[0] + f"[classes]\ntwice = [{names}]\n", "utf-8")
    with pytest.raises(ValueError, match=r"classes\.twice: 13 pairs"):
        Vocabulary.read(path)
