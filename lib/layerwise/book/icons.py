"""The icons that pages show, in small fonts of their own: the theme's hold thousands and weigh more than a page may."""

import re
from pathlib import Path

from fontTools.subset import Subsetter
from fontTools.ttLib import TTFont
from sphinx.application import Sphinx

CLASSES = re.compile(r'class="([^"]*\bfa-[^"]*)"')
NAMED = re.compile(r'((?:\.fa-[\w-]+:before,?)+)\{content:"\\([0-9a-f]+)"\}')  # an icon's names, and its character
WRITTEN = re.compile(r'--pst-icon-[\w-]+:"(.)"')  # those that the theme's style writes by itself
THEME = Path("_static", "styles", "pydata-sphinx-theme.css")
FONTS = Path("_static", "vendor", "fontawesome", "webfonts")
FACES = {
    "fa-solid-900": ("Font Awesome 6 Free", 900),
    "fa-regular-400": ("Font Awesome 6 Free", 400),
    "fa-brands-400": ("Font Awesome 6 Brands", 400),
}
STYLE = "icons.css"


def icons_shown(site: Path) -> set[int]:
    """The characters of all icons on the pages of a built book."""
    theme = (site / THEME).read_text(encoding="utf-8")
    by_name = {
        name: int(code, 16) for names, code in NAMED.findall(theme) for name in re.findall(r"\.(fa-[\w-]+)", names)
    }
    classes = {
        each
        for path in site.rglob("*.html")
        for found in CLASSES.findall(path.read_text(encoding="utf-8"))
        for each in found.split()
    }
    return {by_name[name] for name in classes & set(by_name)} | {ord(icon) for icon in WRITTEN.findall(theme)}


def write_icons(app: Sphinx, error: Exception | None) -> None:
    """Write a font with the icons that the built pages show, and the style that puts it before the theme's fonts.

    The theme's fonts stay where they are: a browser asks for one when a page has an icon that the small font lacks.
    """
    site = Path(app.outdir)
    if error or app.builder.format != "html" or not (site / THEME).is_file():
        return
    shown, rules = icons_shown(site), []
    for name, (family, weight) in FACES.items():
        font = TTFont(site / FONTS / f"{name}.ttf")
        if held := sorted(shown & set(font.getBestCmap())):
            subset = Subsetter()
            subset.populate(unicodes=held)
            subset.subset(font)
            font.flavor = "woff"
            font.save(site / "_static" / f"{name}.woff")
            characters = ", ".join(f"U+{code:x}" for code in held)
            rules.append(
                f'@font-face {{ font-family: "{family}"; font-weight: {weight}; font-display: block; '
                f'src: url({name}.woff) format("woff"); unicode-range: {characters}; }}\n'
            )
    (site / "_static" / STYLE).write_text("".join(rules), encoding="utf-8")
