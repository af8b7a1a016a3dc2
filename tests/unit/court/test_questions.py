"""A reviewer's questions: the same in the explanation, the console's reference and the browser's test, answered for three incidents."""

from __future__ import annotations

from pathlib import Path

from tests.support.console.review_questions import ANSWERS, BY_COMMAND_ALONE

DOCS = Path(__file__).parents[3] / "docs"


def tables(page: str) -> list[list[list[str]]]:
    """The tables of a page that begin with a column of questions, as cells by row, without their heads."""
    lines, found = (DOCS / page).read_text().splitlines(), list[list[list[str]]]()
    for number, line in enumerate(lines):
        if line.startswith("| question |"):
            rows = list[list[str]]()
            for row in lines[number + 2 :]:
                if not row.startswith("|"):
                    break
                rows.append([cell.strip() for cell in row.strip("|").split(" | ")])
            found.append(rows)
    return found


def test_each_question_is_answered_for_the_demo_the_drill_and_the_chase_and_says_by_what() -> None:
    by_what, incidents = tables("explanation/review.md")
    assert {question for question, _ in by_what} == {*ANSWERS, *BY_COMMAND_ALONE}
    assert [question for question, *_ in incidents] == [question for question, _ in by_what]
    assert [question for question, answered in by_what if "](" not in answered] == []
    assert [row for row in incidents if len(row) != 4 or not all(row)] == []


def test_the_consoles_reference_says_where_on_the_page_each_answer_stands() -> None:
    (on_the_page,) = tables("reference/console.md")
    assert {question for question, _ in on_the_page} == {*ANSWERS}
