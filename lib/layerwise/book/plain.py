"""A notebook of the book as one that reads without it: on Colab and GitHub, which know no role and no directive.

Values stand in the text, a citation is authors and year with a link, a figure has a number in this notebook and its
caption below it, and a link leads to the published book. Code is left as it is.
"""

import base64
import hashlib
import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import nbformat
from pybtex.database import Person, parse_file

from .shown import KEY_FIGURE

ROLE = re.compile(r"\{([\w:-]+)\}`([^`]+)`")
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s]+)\)")
OPTION = re.compile(r"^:\w+:.*\n", re.MULTILINE)
MEANT_IN_MARKDOWN = re.compile(r"([\\`*_<$~\[\]])")
ADDRESSES = {"url": "", "doi": "https://doi.org/", "eprint": "https://arxiv.org/abs/"}  # by field, the best first
NOT_YET = "not computed yet"
# A cell of its own, since no text can hold a picture that both show: Colab ignores attachments, GitHub data in links.
# Colab hides the code of such a cell and shows the title.
OF_FIGURE = "# @title The figure as the book has it; a run clears it, and cells below draw it anew"


def references(path: Path) -> dict[str, str]:
    """What each entry of a BibTeX file is cited as, by its key: authors and year, linked where it has an address."""
    if not path.is_file():
        return {}
    cited = {}
    for key, entry in parse_file(str(path)).entries.items():
        names = [_last_name(person) for person in entry.persons["author"]]
        who = f"{names[0]} et al." if len(names) > 2 else " and ".join(names)
        text = f"{who}, {entry.fields['year']}"
        addresses = [start + entry.fields[field] for field, start in ADDRESSES.items() if field in entry.fields]
        cited[key] = f"[{text}]({addresses[0]})" if addresses else text
    return cited


def _last_name(person: Person) -> str:
    return " ".join(str(part) for part in (*person.rich_prelast_names, *person.rich_last_names))


@dataclass(frozen=True)
class Plain:
    """What the words of a notebook need in order to stand without the book.

    `values` by the name they were glued under; `cited` as `references` gives it; `site`, the address of the published
    book, without a slash at its end; `picture`, the PNG of a figure by its name, or None.
    """

    values: Mapping[str, object]
    cited: Mapping[str, str]
    site: str
    picture: Callable[[str], bytes | None]

    def notebook(self, notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
        """The notebook with its text resolved; figures get cells of their own, and ids that no other edit changes.

        Raises ValueError for a role that can't be shown, an unknown citation, and a figure of another notebook.
        """
        numbers = _figure_numbers(notebook)
        cells = []
        for cell in notebook.cells:
            new = self._text_cells(cell, numbers) if cell.cell_type == "markdown" else [cell]
            figure = _figure(cell)
            if "name" in figure:
                new.append(self._caption(numbers[figure["name"]], figure["caption"], numbers))
            for turn, each in enumerate(new[1:], 1):
                each.id = hashlib.sha256(f"{cell.id} {turn}".encode()).hexdigest()[:8]
            cells += new
        return nbformat.from_dict({**notebook, "cells": cells})

    def _text_cells(self, cell: nbformat.NotebookNode, numbers: Mapping[str, int]) -> list[nbformat.NotebookNode]:
        """The cells that a cell of text becomes: parted where it places a figure, which comes between the parts."""
        before, *rest = KEY_FIGURE.split(cell.source)
        cells = [nbformat.from_dict({**cell, "source": self.text(before.strip(), numbers)})]
        for figure, body, after in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
            if (png := self.picture(figure)) is not None:
                shown = nbformat.v4.new_output("display_data", {"image/png": base64.b64encode(png).decode()})
                settings = {"cellView": "form", "tags": ["shown"]}
                cells.append(nbformat.v4.new_code_cell(OF_FIGURE, outputs=[shown], metadata=settings))
            cells.append(self._caption(numbers[figure], OPTION.sub("", body).strip(), numbers))
            cells[-1].source += f"\n\n{self.text(after.strip(), numbers)}" if after.strip() else ""
        return cells

    def _caption(self, number: int, caption: str, numbers: Mapping[str, int]) -> nbformat.NotebookNode:
        return nbformat.v4.new_markdown_cell(f"**Figure {number}.** {self.text(caption, numbers)}")

    def text(self, text: str, numbers: Mapping[str, int] | None = None) -> str:
        """Markdown without roles and without links that lead nowhere outside of the book; `numbers`, of figures."""
        roles = {
            "glue:text": self._value,
            "cite": self._citations,
            "cite:p": self._citations,
            "numref": lambda name: f"Figure {(numbers or {})[name]}",
        }

        def resolved(match: re.Match) -> str:
            role, content = match.groups()
            if role not in roles:
                known = ", ".join(roles)
                raise ValueError(f"{match[0]} can't be shown outside of the book; roles that can be are {known}")
            try:
                return roles[role](content)
            except KeyError as error:
                raise ValueError(f"{match[0]}: this notebook has no such figure, or the book no such entry") from error

        return LINK.sub(lambda match: f"]({self._address(match[1])})", ROLE.sub(resolved, text))

    def _value(self, content: str) -> str:
        name, colon, form = content.rpartition(":")
        if content in self.values or not colon:
            name, form = content, ""
        if name not in self.values:
            return f"({name}: {NOT_YET})"
        return MEANT_IN_MARKDOWN.sub(r"\\\1", format(self.values[name], form))

    def _citations(self, keys: str) -> str:
        return "(" + "; ".join(self.cited[key.strip()] for key in keys.split(",")) + ")"

    def _address(self, target: str) -> str:
        """Where a link to a page or file beside the notebook leads in the published book."""
        path, _, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join("notebooks", path))
        path = path.removeprefix("book/") if "/_static/" in path else f"{path}.html"
        return f"{self.site}/{path}{'#' if anchor else ''}{anchor}"


def _figure(cell: nbformat.NotebookNode) -> Mapping[str, str]:
    """Name and caption of the figure that a cell of code draws; empty where it draws none."""
    return cell.metadata.get("mystnb", {}).get("figure", {})


def _figure_numbers(notebook: nbformat.NotebookNode) -> dict[str, int]:
    """The number of every figure with a name, in the order in which the notebook has them."""
    names = []
    for cell in notebook.cells:
        names += [name for name, _ in KEY_FIGURE.findall(cell.source)] if cell.cell_type == "markdown" else []
        names += [_figure(cell)["name"]] if "name" in _figure(cell) else []
    return {name: number for number, name in enumerate(dict.fromkeys(names), 1)}
