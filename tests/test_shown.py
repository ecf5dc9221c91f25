"""What a committed notebook shows before it runs, and how the text of the book becomes plain Markdown."""

import base64
import io

import nbformat
import pytest
from layerwise.book import RECORD, paths, plain, shown, sync
from PIL import Image

HEADER = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
---
"""
CHAPTER = """
# Toy

**The answer.** It is {glue:text}`answer`, or {glue:text}`answer:.1f` ({numref}`fig-key`, {cite}`two,three`);
[others](other#part) and [words](../book/words) differ.

```{glue:figure} fig-key
:name: fig-key
:alt: A square.

It has {glue:text}`colour`.
```

What it costs. [![Open](../book/_static/colab.svg)](https://colab.example/toy)

```{code-cell} ipython3
print("{glue:text}`answer`")
```

```{code-cell} ipython3
---
mystnb:
  figure:
    name: fig-more
    caption: More of {numref}`fig-key`.
---
1 + 1
```
"""
BIBLIOGRAPHY = r"""
@book{two, author = {van der Berg, A. and M{\"u}ller, B.}, title = {T}, year = {1990}, eprint = {1234.5678}}
@book{three, author = {A, A. and B, B. and C, C.}, title = {T}, year = {1991}, url = {https://example.org/three}}
"""
INDEX = "# Index\n\n% answers\n**Toy.** {glue:text}`../notebooks/toy.ipynb::answer`\n% end of answers\n\nMore.\n"


@pytest.fixture
def book(tmp_path):
    """A book of one notebook, which glues values and a figure."""
    for folder in ("notebooks", "book"):
        (tmp_path / folder).mkdir()
    (tmp_path / "_config.yml").write_text("repository:\n  url: https://github.com/someone/name\n")
    (tmp_path / "_toc.yml").write_text("root: book/index\nchapters:\n  - file: notebooks/toy\n")
    (tmp_path / "pyproject.toml").write_text('Repository = "https://github.com/someone/name"\n')
    (tmp_path / "book" / "references.bib").write_text(BIBLIOGRAPHY)
    (tmp_path / "book" / "index.md").write_text(INDEX)
    (tmp_path / "README.md").write_text("# Name\n\n<!-- answers -->\nold\n<!-- end of answers -->\n\nMore.\n")
    (tmp_path / "notebooks" / "toy.md").write_text(HEADER + CHAPTER)
    return tmp_path


def executed(folder, answer=2 / 3, size=40):
    """An executed copy that has glued these."""
    picture = io.BytesIO()
    Image.linear_gradient("L").resize((size, size)).convert("RGB").save(picture, "PNG")
    png = base64.b64encode(picture.getvalue()).decode()
    recorded = {
        "answer": {"text/plain": repr(answer)},
        "colour": {"text/plain": repr("4_bits < $x$")},
        "unknown": {"text/plain": "nan"},
        "table": {"text/plain": "<HTML object>", "text/html": "<table></table>"},
        "fig-key": {"text/plain": "<Figure>", "image/png": png},
        "fig-other": {"text/plain": "<Figure>", "image/png": png},
    }
    outputs = []
    for name, data in recorded.items():
        data = {RECORD + kind: content for kind, content in data.items()}
        outputs.append(nbformat.v4.new_output("display_data", data, metadata={"scrapbook": {"name": name}}))
    path = folder / "executed.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=outputs)]), path)
    return path


def committed(book):
    notebook = nbformat.read(book / "notebooks" / "toy.ipynb", as_version=4)
    nbformat.validate(notebook)
    return notebook.cells


def test_a_notebook_has_words_pictures_and_links_in_place_of_roles(book):
    shown.keep(book, "toy", executed(book))
    sync.sync(book)
    answer, figure, caption, _, _, more = committed(book)
    site = "https://someone.github.io/name"
    cited = "([van der Berg and Müller, 1990](https://arxiv.org/abs/1234.5678); [A et al., 1991](https://example.org/three))"
    assert answer.source == (
        f"# Toy\n\n**The answer.** It is {2 / 3}, or 0.7 (Figure 1, {cited});\n"
        f"[others]({site}/notebooks/other.html#part) and [words]({site}/book/words.html) differ."
    )
    badge = f"[![Open]({site}/_static/colab.svg)](https://colab.example/toy)"
    assert caption.source == f"**Figure 1.** It has 4\\_bits \\< \\$x\\$.\n\nWhat it costs. {badge}"
    assert more.source == "**Figure 2.** More of Figure 1."
    (output,) = figure.outputs
    kept = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
    difference = [abs(a - b) for a, b in zip(kept.convert("L").tobytes(), gradient(40), strict=True)]
    assert kept.size == (40, 40) and max(difference) < 16


def gradient(size):
    return Image.linear_gradient("L").resize((size, size)).tobytes()


def test_the_code_is_that_of_the_text_and_runs_nothing_before(book):
    shown.keep(book, "toy", executed(book))
    sync.sync(book)
    text = sync.read_notebook(paths.notebook_source(book, "toy"))
    code = [cell for cell in committed(book) if cell.cell_type == "code"]
    own = [cell for cell in code if "shown" not in cell.metadata.get("tags", [])]
    assert [(cell.id, cell.source) for cell in own] == [
        (cell.id, cell.source) for cell in text.cells if cell.cell_type == "code"
    ]
    (picture,) = [cell for cell in code if cell not in own]
    assert all(line.startswith("#") for line in picture.source.splitlines())


def test_new_results_make_a_notebook_stale_and_sync_renews_it_without_a_run(book):
    shown.keep(book, "toy", executed(book))
    sync.sync(book)
    before = {cell.id for cell in committed(book)}
    assert sync.stale_pairs(book) == [] == sync.sync(book) == shown.keep(book, "toy", executed(book))
    shown.keep(book, "toy", executed(book, answer=0.75))
    assert sync.stale_pairs(book) == ["toy"]
    assert set(sync.sync(book)) == {"notebooks/toy.ipynb", "README.md"} and sync.stale_pairs(book) == []
    assert "It is 0.75, or 0.8" in committed(book)[0].source and {cell.id for cell in committed(book)} == before
    shown.keep(book, "toy", executed(book, answer=0.75, size=50))
    assert sync.stale_pairs(book) == ["toy"]


def test_a_notebook_that_was_never_built_says_so(book):
    sync.sync(book)
    answer, caption, *_ = committed(book)
    assert f"(answer: {plain.NOT_YET})" in answer.source and caption.source.startswith("**Figure 1.**")


@pytest.mark.parametrize("role", ["{doc}`other`", "{numref}`fig-elsewhere`", "{cite}`nobody`"])
def test_what_cannot_be_shown_is_an_error_that_names_it(book, role):
    with (book / "notebooks" / "toy.md").open("a") as text:
        text.write(f"\nSee {role}.\n")
    with pytest.raises(ValueError, match=f"notebooks/toy.md: {role}"):
        sync.sync(book)


def test_readme_says_what_the_landing_page_says(book):
    shown.keep(book, "toy", executed(book, answer=42))
    sync.sync(book)
    readme = (book / "README.md").read_text()
    assert readme == "# Name\n\n<!-- answers -->\n**Toy.** 42\n<!-- end of answers -->\n\nMore.\n"


def test_figures_are_kept_that_the_text_or_readme_shows_and_no_others(book):
    kept = book / "notebooks" / "shown"
    shown.keep(book, "toy", executed(book))
    assert {path.name for path in kept.iterdir()} == {"toy.json", "fig-key.png"}
    with (book / "README.md").open("a") as readme:
        readme.write('<img src="notebooks/shown/fig-other.png" alt="A square.">\n')
    assert shown.keep(book, "toy", executed(book)) == [kept / "fig-other.png"]
