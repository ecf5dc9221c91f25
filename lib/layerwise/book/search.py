"""How often each word stands on each page, so that a search lists pages that are about a word before others.

Sphinx' index knows whether a page has a word: all that do have one score, and come in the order of the alphabet.
`book/_static/search_order.js` adds to that score by these counts.
"""

import json
import re
from collections import Counter
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

WORD = re.compile(r"\w{2,20}")
LEAST = 2  # a word that a page has once says little of it
DEFINED = 1000  # mentions that a definition stands for: a list item that begins with the word in bold type
COUNTS = "search_counts.js"


def count_words(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Count the words of a page as it is read, but for HTML and the formulas."""
    if app.builder.format != "html":
        return
    words: Counter[str] = Counter()
    for node in doctree.findall(nodes.Text):
        if not isinstance(node.parent, (nodes.raw, nodes.math, nodes.math_block)):
            words.update(WORD.findall(node.astext().lower()))
    for item in doctree.findall(nodes.list_item):
        first = next((text for text in item.findall(nodes.Text) if text.strip()), None)
        if first is not None and isinstance(first.parent, nodes.strong):
            words[first.astext().lower()] += DEFINED
    counts = {word: count for word, count in sorted(words.items()) if count >= LEAST and not word.isdecimal()}
    app.env.metadata[page]["words"] = counts


def write_counts(app: Sphinx, error: Exception | None) -> None:
    """Write the counts of all pages as a script for the search page."""
    if not error and app.builder.format == "html":
        pages = {page: found["words"] for page, found in app.env.metadata.items() if "words" in found}
        script = f"globalThis.wordsOfPages = {json.dumps(pages, ensure_ascii=False, separators=(',', ':'))};\n"
        Path(app.outdir, "_static", COUNTS).write_text(script, encoding="utf-8")
