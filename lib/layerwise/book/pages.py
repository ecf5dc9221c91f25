"""What the book adds to Sphinx: an extension, named in `_config.yml`, that makes pages light and readable for all."""

from docutils import nodes
from sphinx.application import Sphinx

from .cards import add_card
from .icons import STYLE, write_icons
from .markup import depart_citation, depart_image, mend_outputs, visit_citation, visit_image
from .mathematics import visit_math, visit_math_block
from .search import COUNTS, count_words, write_counts

# Jupyter Book loads this on every page, for what this book has none of: code run by a server elsewhere, tabs.
UNUSED = ("sphinx-thebe", "THEBE_JS_URL", "design-tabs")
# Styles that some pages need, and what these have: cards and grids; cells of a notebook and what others take from them.
STYLES = {"sphinx-design": ('class="sd-',), "mystnb": ('class="cell', "pasted-")}


def without(html: str, *names: str) -> str:
    """Lines of HTML but for those that load a file of one of these names."""
    return "\n".join(line for line in html.splitlines() if not any(name in line for name in names))


def leave_out(app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None) -> None:
    """Leave out scripts and styles that no page needs, and lend `without` to the template `layout.html`."""
    body = context.get("body", "")
    unused = [*UNUSED, *(style for style, uses in STYLES.items() if not any(use in body for use in uses))]
    for kind in ("script_files", "css_files"):
        context[kind][:] = [file for file in context[kind] if not _names(file, unused)]
    context["without"] = without
    if page == "search":
        app.add_js_file(COUNTS)


def _names(file, names: list[str]) -> bool:
    text = f"{file.filename or ''} {file.attributes.get('body', '')}"
    return any(name in text for name in names)


def setup(app: Sphinx) -> dict:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.add_node(nodes.image, override=True, html=(visit_image, depart_image))
    app.add_node(nodes.citation, override=True, html=(visit_citation, depart_citation))
    app.add_css_file(STYLE)
    app.add_js_file("reading.js", loading_method="defer")
    app.connect("doctree-resolved", mend_outputs)
    app.connect("doctree-resolved", count_words)
    app.connect("html-page-context", add_card)
    app.connect("html-page-context", leave_out, priority=900)  # when all others have added theirs
    app.connect("build-finished", write_icons)
    app.connect("build-finished", write_counts)
    return {"parallel_read_safe": True}
