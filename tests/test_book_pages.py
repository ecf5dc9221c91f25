"""What the book adds to Sphinx, on a toy page built by Sphinx alone; `make test-pages` looks at the book's own."""

import base64
import io
import json
import re

import pytest
from PIL import Image
from sphinx.application import Sphinx

ROWS = "block,kl\n0,0.25\n1,0.5\n"
DATA = base64.b64encode(ROWS.encode()).decode()
LINK = f'<a class="download-data" download="toy.csv" href="data:text/csv;base64,{DATA}">'
PAGE = f"""
Toy
===

What this page is about: :math:`\\frac{{a}}{{b}}` of a *whole* & more [toy]_.

.. math:: r_i = \\sqrt{{x}}

.. image:: dot.png
   :alt: a dot

.. raw:: html

   <table><tr><th></th><th>kl</th></tr></table>{LINK}2 rows</a>

- **LIM**, a score. Once more: score.
- a limit

.. [toy] A paper.
"""
CONFIG = """
extensions = ["layerwise.book.pages"]
html_theme = "basic"
html_math_renderer = "mathml"
project = "Toys"
"""


@pytest.fixture
def built(tmp_path):
    """A function from the text of a page to its HTML, what Sphinx warned of, and the folder that it is in."""

    def build(text):
        source, site, warnings = tmp_path / "source", tmp_path / "site", io.StringIO()
        (source / "part").mkdir(parents=True)
        (source / "conf.py").write_text(CONFIG)
        (source / "_config.yml").write_text("repository:\n  url: https://github.com/someone/toys\n")
        (source / "index.rst").write_text("Index\n=====\n\n.. toctree::\n\n   part/toy\n")
        (source / "part" / "toy.rst").write_text(text)
        Image.new("RGB", (30, 20)).save(source / "part" / "dot.png")
        app = Sphinx(source, source, site, tmp_path / "doctrees", "html", status=None, warning=warnings)
        app.build()
        return (site / "part" / "toy.html").read_text(), warnings.getvalue(), site

    return build


def test_formulas_are_mathml_and_load_nothing(built):
    page, warnings, _ = built(PAGE)
    assert page.count("<math") == 2 and "<mfrac>" in page and "<msqrt>" in page and "mathjax" not in page.lower()
    assert warnings == ""


@pytest.mark.parametrize("formula", [r"\frobnicate x", r"a \\ b"])
def test_a_formula_that_has_no_translation_is_a_warning_that_says_where(built, formula):
    _, warnings, _ = built(f"Toy\n===\n\n:math:`{formula}`\n")
    assert "toy.rst:4: WARNING: this formula can't be written as MathML" in warnings


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"\tfrac12 x", ["1", "2"]),
        (r"\frac123", ["1", "2", "3"]),
        ("x^12", ["1", "2"]),
        ("12 x", ["12"]),
        (r"\begin{aligned} 1 &= a \\[4pt] 2 &= b \end{aligned}", ["1", "2"]),
    ],
)
def test_digits_and_gaps_are_read_as_tex_does(built, written, read):
    page, _, _ = built(f"Toy\n===\n\n:math:`{written}`\n")
    assert re.findall(r"<mn>(\d+)</mn>", page) == read


def test_data_is_a_file_beside_the_page_and_its_link_leads_there(built):
    page, _, site = built(PAGE)
    assert 'href="../_downloads/part/toy/toy.csv"' in page and "base64" not in page
    assert (site / "_downloads" / "part" / "toy" / "toy.csv").read_text() == ROWS


def test_pictures_wait_and_have_their_size(built):
    page, _, _ = built(PAGE)
    (picture,) = (part.split(">")[0] for part in page.split("<img")[1:])
    assert 'width="30"' in picture and 'height="20"' in picture and 'loading="lazy"' in picture


def test_no_header_is_empty_and_no_list_has_entries_that_are_none(built):
    page, _, _ = built(PAGE)
    assert "<td></td><th>kl</th>" in page
    assert 'role="doc-biblioentry"' in page and 'role="list"' not in page


def test_a_page_says_what_it_is_about(built):
    page, _, _ = built(PAGE)
    assert 'property="og:url" content="https://someone.github.io/toys/part/toy.html"' in page
    assert 'property="og:title" content="Toy"' in page and "of a whole &amp; more" in page.split("</head>")[0]


def test_a_search_knows_how_often_a_page_has_a_word_and_what_it_defines(built):
    _, _, site = built(PAGE)
    script = (site / "_static" / "search_counts.js").read_text()
    counts = json.loads(script.removeprefix("globalThis.wordsOfPages = ").rstrip().rstrip(";"))["part/toy"]
    assert counts["lim"] > 100 > counts["score"] == 2
    assert "search_counts.js" in (site / "search.html").read_text()
