"""The book's machinery, on toy books in a temporary folder."""

import json
import sys
import types
import zipfile

import nbformat
import pandas as pd
import pytest
import torch
from layerwise import results
from layerwise.book import RECORD, build, check, execute, machine, offer, paths, sync
from layerwise.book.__main__ import main

HEADER = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
    format_version: 0.13
kernelspec:
  display_name: Python 3 (ipykernel)
  language: python
  name: python3
---
"""
TOY = (
    HEADER
    + """
# Toy

```{code-cell} ipython3
:tags: [parameters]

PROFILE = "quick"
```

```{code-cell} ipython3
import sys
from layerwise.book import glue
glue("answer", 6 * 7)
print(PROFILE, sys.prefix)
```
"""
)
CONFIG = "repository:\n  url: https://github.com/someone/new-name\n"


@pytest.fixture
def book(tmp_path):
    """A book of one small notebook."""
    for folder in ("notebooks", "book", "lib/layerwise"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "notebooks" / "toy.md").write_text(TOY)
    (tmp_path / "lib" / "layerwise" / "thing.py").write_text("x = 1\n")
    (tmp_path / "_config.yml").write_text(CONFIG)
    (tmp_path / "_toc.yml").write_text("root: book/index\nchapters:\n  - file: notebooks/toy\n")
    (tmp_path / "pyproject.toml").write_text('Repository = "https://github.com/someone/old"\n')
    return tmp_path


def outputs(path):
    notebook = nbformat.read(path, as_version=4)
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_a_notebook_is_executed_once_and_again_only_when_something_changed(book):
    first = execute.execute(book, "toy")
    assert first.ran and first.path == book / "_build" / "executed" / "toy.ipynb"
    text = "".join(output.text for output in outputs(first.path) if "text" in output)
    assert f"quick {sys.prefix}" in text, "the kernel is not this environment's Python"
    record = next(output for output in outputs(first.path) if "scrapbook" in output.get("metadata", {}))
    assert record.data["application/papermill.record/text/plain"] == "42"
    assert not execute.execute(book, "toy").ran

    (book / "lib" / "layerwise" / "thing.py").write_text("x = 2\n")
    assert (
        execute.notebook_fingerprint(book, "toy", {})
        != json.loads(first.path.with_suffix(".json").read_text())["fingerprint"]
    )
    again = execute.execute(book, "toy", {"PROFILE": "full"}, folder="full")
    assert again.ran and "full " in "".join(output.text for output in outputs(again.path) if "text" in output)


@pytest.mark.parametrize("path", ["notebooks/toy.md", "results/rows.csv", "constraints.txt", "lib/layerwise/w/a.csv"])
def test_what_a_chapter_depends_on(book, path):
    before = execute.notebook_fingerprint(book, "toy", {})
    (book / path).parent.mkdir(parents=True, exist_ok=True)
    (book / path).write_text("changed")
    assert execute.notebook_fingerprint(book, "toy", {}) != before


def test_neither_caches_nor_other_chapters_make_a_chapter_run_again(book):
    before = execute.notebook_fingerprint(book, "toy", {})
    (book / "results" / "figures").mkdir(parents=True)  # such as the front page's picture
    (book / "results" / "figures" / "new.png").write_text("bytes")
    (book / "notebooks" / "other.md").write_text("text")
    (book / "lib" / "layerwise" / "__pycache__").mkdir()
    (book / "lib" / "layerwise" / "__pycache__" / "thing.pyc").write_text("bytes")
    assert execute.notebook_fingerprint(book, "toy", {}) == before


def test_a_failing_cell_is_named_and_its_copy_kept(book, monkeypatch, capsys):
    failing = TOY + "\n```{code-cell} ipython3\n\n1 / 0\n```\n"
    (book / "notebooks" / "toy.md").write_text(failing)
    monkeypatch.chdir(book / "notebooks")
    assert main(["execute", "toy"]) == 1
    message = capsys.readouterr().err
    assert "notebooks/toy.md, cell 3 (1 / 0): ZeroDivisionError: division by zero" in message
    assert "_build/unfinished/toy.ipynb" in message
    assert any(output.output_type == "error" for output in outputs(book / "_build" / "unfinished" / "toy.ipynb"))
    assert not (book / "_build" / "executed" / "toy.ipynb").exists()


def test_results_that_a_chapter_does_not_ask_for_are_listed(book, monkeypatch, capsys):
    study = "import pandas as pd\nclass study:\n    def unasked(): return pd.DataFrame({'table': ['orders']})"
    (book / "notebooks" / "toy.md").write_text(f"{TOY}\n```{{code-cell}} ipython3\n\n{study}\n```\n")
    monkeypatch.chdir(book)
    assert main(["unasked", "toy"]) == 0
    assert capsys.readouterr().out.split() == ["toy", "table", "orders"]
    assert not list((book / "_build").rglob("*.ipynb"))


def test_an_unknown_notebook_is_an_error_that_lists_the_known_ones(book):
    with pytest.raises(FileNotFoundError, match="'toys'.*there are: toy"):
        execute.execute(book, "toys")


def test_outside_of_a_clone_the_error_says_where_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="inside a clone"):
        paths.find_root(tmp_path)


def test_sync_writes_pairs_and_addresses_and_leaves_other_addresses_alone(book):
    readme = book / "README.md"
    readme.write_text(
        "git clone https://github.com/someone/old\nhttps://github.com/someone/old/issues https://github.com/someone/older\n"
    )
    written = sync.sync(book)
    assert readme.read_text() == (
        "git clone https://github.com/someone/new-name\n"
        "https://github.com/someone/new-name/issues https://github.com/someone/older\n"
    )
    assert {"README.md", "pyproject.toml", "notebooks/toy.ipynb"} == set(written)
    assert sync.sync(book) == [] and sync.stale_pairs(book) == []
    assert {copy[2] for copy in sync.own_addresses(book)} == {"someone/new-name"}

    source = book / "notebooks" / "toy.md"
    source.write_text(source.read_text() + "\nMore.\n")
    assert sync.stale_pairs(book) == ["toy"]


def test_a_cell_keeps_its_id_when_another_one_is_added(book):
    source = book / "notebooks" / "toy.md"
    before = [cell.id for cell in sync.read_notebook(source).cells]
    source.write_text(TOY.replace("# Toy\n", "# Toy\n\n```{code-cell} ipython3\n1 + 1\n```\n"))
    after = [cell.id for cell in sync.read_notebook(source).cells]
    assert set(before) < set(after) and len(after) == len(before) + 1 == len(set(after))


def test_an_address_that_colab_cannot_open_is_an_error(book):
    (book / "_config.yml").write_text("repository:\n  url: https://example.org/someone/name\n")
    with pytest.raises(ValueError, match="https://github.com/OWNER/NAME"):
        sync.sync(book)


def test_the_stage_holds_pages_and_named_figures_and_nothing_older(book):
    (book / "book" / "index.md").write_text("# Index\n")
    cell = nbformat.v4.new_code_cell(
        metadata={"mystnb": {"figure": {"name": "fig-one"}}},
        outputs=[nbformat.v4.new_output("display_data", {"image/png": "aGVsbG8="})],
    )
    glued = nbformat.v4.new_output("display_data", {RECORD + "image/png": "aGVsbG8="})
    glued.metadata["scrapbook"] = {"name": "fig-key"}
    cell_of_glued = nbformat.v4.new_code_cell(outputs=[glued])
    executed = book / "executed.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell, cell_of_glued]), executed)
    old = book / "_build" / "stage" / "notebooks" / "old.ipynb"
    old.parent.mkdir(parents=True)
    old.write_text("{}")
    folder = build.stage(book, {"toy": executed})
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    figures = {"figures/fig-one.png", "figures/fig-key.png"}
    assert files == figures | {"_config.yml", "_toc.yml", "book/index.md", "notebooks/toy.ipynb"}
    assert all((folder / name).read_bytes() == b"hello" for name in figures)


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ('<script src="https://cdn.example.org/a.js"></script>', "loads from the network: https://cdn"),
        ('<link rel="stylesheet" href="//fonts.example.org/a.css">', "loads from the network: //fonts"),
        ('<img src="https://example.org/a.png" alt="a plot">', "loads from the network: https://example"),
        ('<script>import("https://example.org/a.mjs")</script>', "loads from the network: import"),
        ("<style>p { background: url(https://example.org/a.png) }</style>", "loads from the network: url"),
        ('<script src="gone.js"></script>', "loads a file that is not there: gone.js"),
        ('<img src="data:image/png;base64,AA">', "has no description"),
        ('<img src="data:image/png;base64,AA" alt="../_images/0a1b.png">', "has no description"),
        ("<pre>ValueError <span>Traceback (most recent call last)</span></pre>", "shows a traceback"),
        ('<div class="output traceback highlight">error</div>', "shows a traceback"),
    ],
)
def test_faults_of_a_page_are_found(book, html, problem):
    page = book / "page.html"
    page.write_text(f"<html><body>{html}</body></html>")
    (found,) = check.check_page(page, check.read_page(page))
    assert problem in found


def test_links_to_follow_and_described_images_are_no_fault(book):
    page = book / "page.html"
    page.write_text('<a href="https://example.org">x</a><img src="data:image/png;base64,AA" alt="Loss by block">')
    assert check.check_page(page, check.read_page(page)) == []


def test_links_inside_of_the_book_must_lead_somewhere(book):
    site = book / "_build" / "html"
    (site / "notebooks").mkdir(parents=True)
    (site / "index.html").write_text(
        '<a href="notebooks/toy.html#a%20b">x</a><a href="#">y</a><a href="gone.html">z</a>'
    )
    (site / "notebooks" / "toy.html").write_text(
        '<h1 id="a b">T</h1><a href="../index.html?q=1">x</a><a href="../index.html#gone">y</a><a href="#here">z</a>'
        '<a href="https://example.org/#gone">w</a><a href="data:text/csv;base64,AA">v</a><a href="mailto:a@b.c">u</a>'
    )
    (book / "_toc.yml").write_text("root: notebooks/toy\n")
    assert check.check_pages(book) == [
        "index.html: it links to a file that is not there: gone.html",
        "notebooks/toy.html: it links to an anchor that is not there: ../index.html#gone",
        "notebooks/toy.html: it links to an anchor that is not there: #here",
    ]
    assert check.external_links(book) == ["https://example.org/#gone"]


def test_a_page_of_the_contents_that_was_not_built_is_found(book):
    site = book / "_build" / "html" / "book"
    site.mkdir(parents=True)
    (site / "index.html").write_text("<p>fine</p>")
    (problem,) = check.check_pages(book)
    assert problem.startswith("notebooks/toy: ")


# What notebooks import.


def test_a_glued_figure_is_recorded_and_shown_as_any_other(book):
    plot = """
```{code-cell} ipython3
import matplotlib.pyplot as plt
from layerwise.book import glue_figure
%config InlineBackend.figure_formats = ["svg", "png"]
axes = plt.subplots(2)[1]
glue_figure("fig-key", axes)
```
"""
    (book / "notebooks" / "toy.md").write_text(TOY + plot)
    recorded, shown = outputs(execute.execute(book, "toy").path)[-2:]
    assert recorded.metadata["scrapbook"] == {"name": "fig-key", "mime_prefix": RECORD}
    kinds = {"image/svg+xml", "image/png"}
    assert {RECORD + kind for kind in kinds} <= set(recorded.data) and kinds <= set(shown.data)


@pytest.fixture
def colab(monkeypatch, tmp_path):
    """A stand-in for the module that Colab has, in an empty folder; what the browser was asked to save."""
    google, stand_in, saved = types.ModuleType("google"), types.ModuleType("google.colab"), []
    google.colab = stand_in
    stand_in.files = types.SimpleNamespace(download=saved.append)
    monkeypatch.setitem(sys.modules, "google", google)
    monkeypatch.setitem(sys.modules, "google.colab", stand_in)
    (tmp_path / "content").mkdir()
    monkeypatch.chdir(tmp_path / "content")
    return saved


TABLES = {"rows": pd.DataFrame({"a": [1, 2]}), "more": pd.DataFrame({"b": [0.5]})}


def test_on_colab_all_tables_are_saved(colab):
    offer("toy_chapter", TABLES)
    with zipfile.ZipFile(*colab) as archive:
        assert {f"tables/{name}.csv" for name in TABLES} <= set(archive.namelist())
        assert archive.read("tables/rows.csv") == b"a\n1\n2\n"
        assert not [name for name in archive.namelist() if name.startswith("results/")]


def test_rows_of_the_full_profile_go_beside_those_of_other_models(colab, tmp_path, monkeypatch, book):
    def rows(model):
        return pd.DataFrame({"model": [model], "y": [0.5]})

    written = tmp_path / "results" / "toy_chapter" / "rows.csv"
    origin = {"run": {"commit": "0" * 40, "dirty": False}}

    def table(path, model, origins):
        path.parent.mkdir(parents=True, exist_ok=True)
        rows(model).assign(key=model, run="run").to_csv(path, index=False)
        path.with_suffix(".json").write_text(json.dumps({"labels": [], "runs": origins}))

    table(written, "8B", origin)
    offer("toy_chapter", {"rows": rows("8B"), "derived": rows("8B")})
    committed = book / "results" / "toy_chapter" / "rows.csv"
    table(committed, "6L", origin)
    monkeypatch.chdir(book)
    archive = str(tmp_path / "content" / colab[0])
    assert main(["add", archive]) == 0 == main(["add", archive])
    assert list(results.load_rows(committed)["model"]) == ["6L", "8B"]
    assert json.loads(committed.with_suffix(".json").read_text())["runs"] == origin


def test_results_that_nobody_could_make_again_are_refused(colab, tmp_path, monkeypatch, book, capsys):
    written = tmp_path / "results" / "toy_chapter" / "rows.csv"
    written.parent.mkdir(parents=True)
    written.write_text("model,y,key,run\n8B,0.5,0,run\n")
    written.with_suffix(".json").write_text('{"labels": [], "runs": {"run": {"dirty": true}}}')
    offer("toy_chapter", TABLES)
    monkeypatch.chdir(book)
    assert main(["add", str(tmp_path / "content" / colab[0])]) == 1
    assert "changes that no commit has" in capsys.readouterr().err


def test_an_archive_without_rows_of_the_full_profile_is_refused(colab, tmp_path, monkeypatch, book, capsys):
    offer("toy_chapter", TABLES)
    monkeypatch.chdir(book)
    assert main(["add", str(tmp_path / "content" / colab[0])]) == 1
    assert "PROFILE = 'full'" in capsys.readouterr().err


def test_elsewhere_rows_are_links(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    offer("toy_chapter", TABLES)
    assert capsys.readouterr().out.count("HTML") == 2 and not list(tmp_path.iterdir())


def test_a_gpu_is_named_with_what_it_has_room_for(monkeypatch, capsys):
    gpu = types.SimpleNamespace(name="Tesla T4", total_memory=15.8e9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: gpu)
    machine()
    assert (
        "2 x Tesla T4, 16 GB each: all that is done in this book has room for a model of 4 " in capsys.readouterr().out
    )


def test_without_a_gpu_colab_is_told_how_to_get_one(colab, capsys):
    machine()
    assert "Change runtime type" in capsys.readouterr().out


def test_without_a_gpu_nothing_is_said_elsewhere(capsys):
    machine()
    assert not capsys.readouterr().out
