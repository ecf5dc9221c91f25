"""What a page says of itself in its head: for search engines, and for the card that is shown where it is linked."""

import html
import textwrap
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

from .sync import published

LONGEST = 200  # letters; more is cut off on most cards


def add_card(app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None) -> None:
    """Add title, description, address and picture: what the page begins with, and the landing page's first figure."""
    if doctree is None:
        return
    paragraphs = (" ".join(each.astext().split()) for each in doctree.findall(nodes.paragraph))
    site = published(Path(app.srcdir))
    said = {
        "og:type": "article",
        "og:site_name": app.config.html_title,
        "og:title": app.env.titles[page].astext(),
        "og:description": textwrap.shorten(next(paragraphs, ""), LONGEST, placeholder=" …"),
        "og:url": f"{site}/{page}.html",
    }
    landing = app.env.get_doctree(app.config.root_doc)
    if figure := next(landing.findall(nodes.figure), None):
        picture = next(figure.findall(nodes.image))
        said["og:image"] = f"{site}/_images/{Path(picture['uri']).name}"
        said["og:image:alt"] = picture["alt"]
    written = [f'<meta property="{name}" content="{html.escape(text)}" />' for name, text in said.items()]
    written += [f'<meta name="description" content="{html.escape(said["og:description"])}" />']
    context["metatags"] = "\n    ".join([context.get("metatags", ""), *written])
