"""Exercises of the chapters: their solutions check themselves, whatever models a chapter has run on."""

import ast
import re
from pathlib import Path

import matplotlib
import pytest
from layerwise.book import paths, sync

ROOT = Path(__file__).parents[1]
WITHOUT = {"claims", "embedded_models"}
NAMES = sorted({*paths.chapters(ROOT)} - WITHOUT)


def cells_of(name, kind):
    cells = sync.read_notebook(paths.notebook_source(ROOT, name)).cells
    return [cell for cell in cells if cell["cell_type"] == kind]


def has(cell, *tags):
    return {*tags} <= set(cell["metadata"].get("tags", []))


def solutions(name):
    return [cell for cell in cells_of(name, "code") if has(cell, "exercise", "hide-cell")]


@pytest.mark.parametrize("name", NAMES)
def test_a_chapter_has_two_or_three_exercises_whose_solutions_are_folded(name):
    text = "\n".join(cell["source"] for cell in cells_of(name, "markdown"))
    numbers = re.findall(r"^\*\*(\d)\.\*\* ", text.partition("## Exercises\n")[2], re.MULTILINE)
    assert numbers == [str(n) for n in range(1, len(solutions(name)) + 1)] and len(numbers) in (2, 3)


@pytest.mark.parametrize("name", NAMES)
def test_solutions_hold(name, monkeypatch):
    """With imports and literals of the chapter and nothing else, so that no parameter of a reader's decides."""
    names = {"__name__": "chapter"}
    monkeypatch.chdir(ROOT / "notebooks")
    with matplotlib.rc_context():
        for cell in cells_of(name, "code"):
            code = re.sub(r"^(\s*)[%!].*$", r"\1pass", cell["source"], flags=re.MULTILINE)
            if has(cell, "exercise") or "import layerwise as lw" in code or is_literal(code):
                exec(compile(code, name, "exec"), names)
    for cell in solutions(name):
        assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(cell["source"])))


def is_literal(code):
    """Whether a cell does nothing but name numbers, text and containers of them."""
    try:
        values = [statement.value for statement in ast.parse(code).body]
        return bool([ast.literal_eval(value) for value in values])
    except (AttributeError, ValueError):
        return False
