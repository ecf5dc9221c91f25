"""What is derived from a source and committed beside it.

Notebooks come from their text and what the last build kept (`shown`), README's answers from the landing page, the
address of the repository from `_config.yml`. Nothing is run.
"""

import hashlib
import re
from pathlib import Path

import jupytext
import nbformat
import yaml

from .paths import chapters, notebook_names, notebook_source, write_if_changed
from .plain import Plain, references
from .shown import kept_figure, kept_values

OWNER_AND_NAME = r"[\w.-]+/[\w-]+"
# The shapes in which the repository's own address is written; other repositories are only ever plain links.
OWN_ADDRESS = [
    re.compile(shape % OWNER_AND_NAME)
    for shape in (
        r"git clone https://github\.com/(%s)",
        r"git\+https://github\.com/(%s)",
        r"colab\.research\.google\.com/github/(%s)",
        r"mybinder\.org/v2/gh/(%s)",
        r"repository-code: \"?https://github\.com/(%s)",
        r"Repository = \"https://github\.com/(%s)",
    )
]
# What README takes over from the landing page, where MyST's comments mark it; README has comments of its own around it.
ANSWERS = re.compile(r"^% answers\n(.*?)^% end of answers$", re.MULTILINE | re.DOTALL)
TAKEN_OVER = re.compile(r"(<!-- answers[^>]*-->\n)(.*?)(<!-- end of answers -->)", re.DOTALL)


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """The notebook that a MyST text source stands for: no outputs, and the same cell ids every time.

    An id is a hash of the cell's text (and of its turn among equal cells), so that adding a cell changes no other.
    """
    notebook = jupytext.read(path, fmt="md:myst")
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        text = f"{cell.cell_type}\n{cell.source}"
        seen[text] = seen.get(text, 0) + 1
        cell.id = hashlib.sha256(f"{text}\n{seen[text]}".encode()).hexdigest()[:8]
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def plain_words(root: Path, values: dict) -> Plain:
    """What turns text of this book into Markdown that reads without it; `values` by the name that the text has."""
    cited = references(root / "book" / "references.bib")
    return Plain(values, cited, published(root), lambda figure: kept_figure(root, figure))


def notebook_text(root: Path, name: str) -> str:
    """The exact text of the `.ipynb` that belongs beside `notebooks/NAME.md`; raises ValueError as `Plain` does."""
    notebook = read_notebook(notebook_source(root, name))
    try:
        return nbformat.writes(plain_words(root, kept_values(root, name)).notebook(notebook)) + "\n"
    except ValueError as error:
        raise ValueError(f"notebooks/{name}.md: {error}") from error


def with_answers(root: Path, readme: str) -> str:
    """README's text with the answers of the landing page between its marks; as it is where either has no marks."""
    page = root / "book" / "index.md"
    answers = ANSWERS.search(page.read_text(encoding="utf-8")) if page.is_file() else None
    if answers is None:
        return readme
    values = {
        f"../notebooks/{name}.ipynb::{key}": value
        for name in chapters(root)
        for key, value in kept_values(root, name).items()
    }
    text = plain_words(root, values).text(answers[1].strip())
    return TAKEN_OVER.sub(lambda match: f"{match[1]}{text}\n{match[3]}", readme)


def stale_pairs(root: Path) -> list[str]:
    """Names of the notebooks whose `.ipynb` is missing or is not what sources give, and of pairs without text."""
    names = notebook_names(root)
    stale = []
    for name in names:
        twin = root / "notebooks" / f"{name}.ipynb"
        if not twin.is_file() or twin.read_text(encoding="utf-8") != notebook_text(root, name):
            stale.append(name)
    return stale + [path.stem for path in (root / "notebooks").glob("*.ipynb") if path.stem not in names]


def repository(root: Path) -> str:
    """`OWNER/NAME` of the repository as `_config.yml` has it; raises ValueError where it isn't on GitHub."""
    url = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))["repository"]["url"]
    match = re.fullmatch(rf"https://github\.com/({OWNER_AND_NAME})", url)
    if match is None:
        raise ValueError(f"repository.url in _config.yml is {url!r}; Colab needs https://github.com/OWNER/NAME")
    return match[1]


def published(root: Path) -> str:
    """The address of the published book, without a slash at its end: that of the repository's pages on GitHub."""
    owner, name = repository(root).split("/")
    return f"https://{owner}.github.io/{name}"


def address_files(root: Path) -> list[Path]:
    """The text files that may hold the repository's address (derived notebooks come from their text)."""
    top = [root / name for name in ("README.md", "CITATION.cff", "CONTRIBUTING.md", "pyproject.toml")]
    return [path for path in top if path.is_file()] + sorted(
        [*(root / "book").glob("*.md"), *(root / "notebooks").glob("*.md")]
    )


def own_addresses(root: Path) -> list[tuple[str, int, str]]:
    """Every copy of the repository's own address: (file, line number, `OWNER/NAME`)."""
    return [
        (str(path.relative_to(root)), number, match[1])
        for path in address_files(root)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for shape in OWN_ADDRESS
        for match in shape.finditer(line)
    ]


def sync(root: Path) -> list[str]:
    """Bring all copies up to date; returns the files that were written, relative to the root.

    The address that the copies have now is the one in pyproject.toml, which is written last.
    """
    new = repository(root)
    project, readme = root / "pyproject.toml", root / "README.md"
    old = OWN_ADDRESS[-1].search(project.read_text(encoding="utf-8"))
    if old is None:
        raise ValueError("pyproject.toml has no line 'Repository = \"https://github.com/OWNER/NAME\"'")
    copies = re.compile(rf"(github\.com/|/github/|/gh/){re.escape(old[1])}(?![\w-])")
    written = []
    for path in sorted(address_files(root), key=lambda path: path == project):
        text = copies.sub(rf"\g<1>{new}", path.read_text(encoding="utf-8"))
        if write_if_changed(path, with_answers(root, text) if path == readme else text):
            written.append(path)
    for name in notebook_names(root):
        twin = root / "notebooks" / f"{name}.ipynb"
        if write_if_changed(twin, notebook_text(root, name)):
            written.append(twin)
    return [str(path.relative_to(root)) for path in written]
