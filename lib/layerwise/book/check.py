"""Look at the built pages: all there, no traceback, nothing loaded from the network, images described, no dead link."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .paths import toc_pages

# Attributes through which a browser fetches something by itself; ordinary links (a[href]) are for the reader to follow.
LOADS = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "object": "data",
}
LOADING_LINKS = {"stylesheet", "icon", "shortcut", "preload", "modulepreload", "prefetch"}
REMOTE = re.compile(r"\s*(?:https?:)?//", re.IGNORECASE)
REMOTE_IN_CSS = re.compile(r"""(?:@import\s*|url\(\s*)["']?\s*(?:https?:)?//[^"')\s]+""", re.IGNORECASE)
REMOTE_IN_SCRIPT = re.compile(r"""(?:import\s*\(?|from|src\s*=)\s*["']https?://[^"']+""")
TRACEBACK = "Traceback (most recent call last)"
FILE_NAME = re.compile(r".*\.(?:png|svg|jpe?g|gif|webp)$", re.IGNORECASE)


class Page(HTMLParser):
    """Collects what a page loads, links and anchors, images without a description, and whether it shows a traceback."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.undescribed: list[str] = []
        self.remote_code: list[str] = []
        self.traceback = False
        self.inside = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attributes}
        self.inside = tag if tag in ("script", "style") else self.inside
        self.anchors |= {values[key] for key in ("id", "name") if key in values}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if "traceback" in values.get("class", "").split():
            self.traceback = True
        if tag in LOADS and values.get(LOADS[tag]):
            self.loads.append(values[LOADS[tag]])
        if tag == "link" and LOADING_LINKS.intersection(values.get("rel", "").lower().split()):
            self.loads.append(values.get("href", ""))
        # Sphinx falls back to the file's name where an author gave no description.
        if tag == "img" and (not values.get("alt", "").strip() or FILE_NAME.match(values["alt"].strip())):
            self.undescribed.append(values.get("src", "")[:80])
        self.remote_code += REMOTE_IN_CSS.findall(values.get("style", ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == self.inside:
            self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.remote_code += REMOTE_IN_SCRIPT.findall(data)
        elif self.inside == "style":
            self.remote_code += REMOTE_IN_CSS.findall(data)
        elif TRACEBACK in data:
            self.traceback = True


def read_page(path: Path) -> Page:
    """What one HTML file holds."""
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def read_pages(site: Path) -> dict[Path, Page]:
    """All pages of the built book by their resolved path, in order; those that a theme brings along left out."""
    paths = (path.resolve() for path in sorted(site.rglob("*.html")) if "_static" not in path.relative_to(site).parts)
    return {path: read_page(path) for path in paths}


def check_page(path: Path, page: Page) -> list[str]:
    """What is wrong with one page for itself, one sentence each."""
    problems = ["it shows a traceback"] if page.traceback else []
    problems += [f"an image has no description (alt): {src}" for src in page.undescribed]
    problems += [f"it loads from the network: {text}" for text in page.remote_code]
    for target in page.loads:
        if REMOTE.match(target):
            problems.append(f"it loads from the network: {target}")
        elif target and not target.startswith("data:"):
            local = path.parent / unquote(re.split(r"[?#]", target)[0])
            if not local.exists():
                problems.append(f"it loads a file that is not there: {target}")
    return problems


def check_links(path: Path, pages: dict[Path, Page]) -> list[str]:
    """The links of one page that lead nowhere inside of the book, one sentence each; others are not followed."""
    problems = []
    for target in dict.fromkeys(pages[path].links):
        if is_external(target):
            continue
        file, _, anchor = target.partition("#")
        local = (path.parent / unquote(file.split("?")[0])).resolve() if file else path
        local = local / "index.html" if local.is_dir() else local
        if not local.exists():
            problems.append(f"it links to a file that is not there: {target}")
        elif anchor and local in pages and unquote(anchor) not in pages[local].anchors:
            problems.append(f"it links to an anchor that is not there: {target}")
    return problems


def is_external(target: str) -> bool:
    """Whether a link leaves the book: another site, mail, or a file that the link itself carries."""
    parts = urlsplit(target)
    return bool(parts.scheme or parts.netloc)


def external_links(root: Path) -> list[str]:
    """The addresses of other sites that the built book links to, each once, sorted; none is asked for."""
    pages = read_pages(root / "_build" / "html")
    return sorted({link for page in pages.values() for link in page.links if urlsplit(link).netloc})


def check_pages(root: Path) -> list[str]:
    """Everything that is wrong with the built book under `_build/html`, one line each; empty when it is good."""
    site = root / "_build" / "html"
    problems = []
    for name in toc_pages(root):
        path = site / f"{name}.html"
        if not path.is_file():
            problems.append(f"{name}: the table of contents has it, the built book does not")
    pages = read_pages(site)
    for path, page in pages.items():
        found = check_page(path, page) + check_links(path, pages)
        problems += [f"{path.relative_to(site.resolve())}: {problem}" for problem in found]
    for path in sorted(site.rglob("*.css")):
        text = path.read_text(encoding="utf-8", errors="replace")
        problems += [
            f"{path.relative_to(site)}: it loads from the network: {url}" for url in REMOTE_IN_CSS.findall(text)
        ]
    return problems
