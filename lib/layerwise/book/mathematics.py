"""Formulas as MathML, which browsers show by themselves: no script to load, and screen readers know what they read."""

import re

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

# To TeX an argument without braces is one digit; docutils reads all digits there are.
ONE_DIGIT = re.compile(r"((?:\\[dt]?frac(?:\{\w\})?|\\sqrt|[\^_]) ?)(\d)(?=\d)")
GAP = re.compile(r"\\\\\[[\d.]+(?:pt|em|ex)\]")  # more room between rows, which style gives to all of them

logger = logging.getLogger(__name__)


def visit_math(self, node: nodes.math) -> None:
    """Write a formula within a line; `self` is Sphinx's translator, as below."""
    self.body.append(_mathml(node, as_block=False))
    raise nodes.SkipNode


def visit_math_block(self, node: nodes.math_block) -> None:
    """Write a formula of its own, with its number if it has one."""
    self.body.append(self.starttag(node, "div", CLASS="math"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})</span>')
    self.body.append(f"{_mathml(node, as_block=True)}</div>\n")
    raise nodes.SkipNode


def _mathml(node: nodes.Element, as_block: bool) -> str:
    latex = GAP.sub(r"\\\\", node.astext())
    latex = ONE_DIGIT.sub(r"\1{\2}", ONE_DIGIT.sub(r"\1{\2}", latex))  # once for each part of a fraction
    try:
        return tex2mathml(latex, as_block=as_block)
    except (MathError, AttributeError) as error:  # the latter where rows are broken outside of an environment
        logger.warning("this formula can't be written as MathML: %s", error, location=node)
        return ""
