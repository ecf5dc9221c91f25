"""How single things of a page are written: pictures that wait, tables without empty headers, data as files."""

import base64
import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.images import get_image_size

DATA = re.compile(r'download="([\w.-]+)" href="data:text/csv;base64,([^"]*)"')
EMPTY_HEADER = re.compile(r"<th(?: [^>]*)?>\s*</th>")


def visit_image(self, node: nodes.image) -> None:
    """Write a picture that waits until the reader is near it, with its size, so that no text moves when it comes."""
    size = get_image_size(Path(self.builder.srcdir, node["uri"]))
    node["loading"] = "lazy"
    start = len(self.body)
    type(self).visit_image(self, node)
    if size:
        attributes = f'<img width="{size[0]}" height="{size[1]}" '
        self.body[start:] = [part.replace("<img ", attributes, 1) for part in self.body[start:]]


def depart_image(self, node: nodes.image) -> None:
    type(self).depart_image(self, node)


def visit_citation(self, node: nodes.citation) -> None:
    """Without the role of a list around bibliographic entries, which are list items to docutils and not to ARIA."""
    start = len(self.body)
    type(self).visit_citation(self, node)
    self.body[start:] = [part.replace('<div role="list" ', "<div ") for part in self.body[start:]]


def depart_citation(self, node: nodes.citation) -> None:
    type(self).depart_citation(self, node)


def mend_outputs(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """What cells put out as HTML, for a page: a table's corner is a cell and no header, and the data that a link holds
    is written to a file beside the page, which nobody loads who doesn't ask for it.

    The notebook keeps the data inside its links: on Colab and in JupyterLab there is no place for a file.
    """
    if app.builder.format != "html":
        return
    up = "../" * page.count("/")

    def saved(match: re.Match) -> str:
        file = Path(app.outdir, "_downloads", page, match[1])
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(match[2]))
        return f'download="{match[1]}" href="{up}_downloads/{page}/{match[1]}"'

    for node in doctree.findall(nodes.raw):
        if "html" in node.get("format", "").split():
            text = DATA.sub(saved, EMPTY_HEADER.sub("<td></td>", node.astext()))
            node.children = [nodes.Text(text)]
