"""What a browser makes of one page: what it loads, what it writes to the console, what it shows and to whom."""

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from layerwise.book.check import read_pages
from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html"
PAGES = [str(path.relative_to(SITE.resolve())) for path in read_pages(SITE)] if SITE.is_dir() else []

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
# The browser asks for nothing by itself; its sandbox would need a user that isn't root.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]

# Boxes that hold more than they show, beyond the rounding of pixels, and what a keyboard has of each.
SCROLL_BOXES = """() => [...document.querySelectorAll('body *')].filter(box => {
    const {overflowX, overflowY, visibility} = getComputedStyle(box);
    const scrolls = (overflow, has, shows) => ['auto', 'scroll'].includes(overflow) && has > shows + 1 && shows > 0;
    return visibility === 'visible' && box.checkVisibility() && (scrolls(overflowX, box.scrollWidth, box.clientWidth)
        || scrolls(overflowY, box.scrollHeight, box.clientHeight));
}).map(box => ({
    box: box.outerHTML.slice(0, 120),
    reached: box.tabIndex >= 0 && box.hasAttribute('tabindex'),
    named: Boolean(box.getAttribute('aria-label')) && Boolean(box.getAttribute('role')),
    holds: box.querySelector('a[href], button, input') !== null && box.closest('article') === null,
})).filter(box => !box.holds)"""
EMPTY_HEADERS = """() => [...document.querySelectorAll('th')]
    .filter(header => !header.textContent.trim()).map(header => header.closest('tr').outerHTML.slice(0, 160))"""
UNWRITTEN = """() => [...document.querySelectorAll('article .math')]
    .filter(each => each.tagName !== 'math' && !each.querySelector('math')).map(each => each.outerHTML.slice(0, 160))"""
EAGER = """() => [...document.querySelectorAll('article img')]
    .filter(image => image.getBoundingClientRect().top > innerHeight && image.loading !== 'lazy')
    .map(image => image.src)"""
# Figures are drawn for a light card and keep it.
PALE_BOXES = """() => [...document.querySelectorAll('body :not(img)')].filter(box => {
    const [red, green, blue, alpha = 1] = getComputedStyle(box).backgroundColor.match(/[\\d.]+/g).map(Number);
    return alpha > 0.5 && Math.min(red, green, blue) > 150 && box.offsetWidth > 100 && box.checkVisibility();
}).map(box => box.outerHTML.slice(0, 160))"""
OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
# Folds fade in, and colours change slowly.
SETTLED = """async () => {
    await new Promise(done => setTimeout(done, 100));
    await Promise.all(document.getAnimations().map(each => each.finished));
}"""


@dataclass
class Visit:
    """What one page loaded, wrote to the console and showed."""

    console: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    loaded: dict[str, int] = field(default_factory=dict)  # bytes by address, without images, unpacked
    pictures: dict[str, int] = field(default_factory=dict)
    eager: list[str] = field(default_factory=list)  # images below the screen that don't wait until they are near it
    formulas: int = 0
    unwritten: list[str] = field(default_factory=list)  # formulas that are LaTeX still
    overflow: int = 0
    pale: list[str] = field(default_factory=list)  # boxes of a light colour in dark mode
    boxes: list[dict] = field(default_factory=list)
    empty_headers: list[str] = field(default_factory=list)
    violations: dict[str, list[str]] = field(default_factory=dict)  # by look: rule and where
    themes: list[str] = field(default_factory=list)


def watch(page: Page, host: str, visit: Visit) -> None:
    """Note from now on what a page writes to the console and loads; `host` is where it is served, if it is."""
    page.on("console", lambda message: visit.console.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: visit.console.append(str(error)))
    page.on("requestfailed", lambda request: visit.failed.append(request.url))

    def answered(response) -> None:
        address = urlsplit(response.url)
        if address.netloc != host and address.scheme != "data":
            visit.elsewhere.append(response.url)
        elif response.status >= 400:
            visit.failed.append(response.url)
        elif address.scheme == "http" and response.status == 200:
            kind = visit.pictures if response.request.resource_type == "image" else visit.loaded
            kind[address.path] = int(response.headers["content-length"])

    page.on("response", answered)


def violations(page: Page) -> list[str]:
    """What axe-core finds serious or critical on a page as it is shown now."""
    found = Axe().run(page, options={"resultTypes": ["violations"], "preload": False}).response["violations"]
    return [
        f"{rule['id']}: {' '.join(map(str, node['target']))}  {node['html'][:160]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def visit_page(browser: Browser, site: str, name: str) -> Visit:
    """Open a page of the book at the address `site` on a laptop, and with all folds open on a phone; light and dark."""
    visit = Visit()
    for size in (WIDE, NARROW):
        context = browser.new_context(viewport=size, color_scheme="light", reduced_motion="reduce")
        page = context.new_page()
        watch(page, urlsplit(site).netloc, visit)
        page.goto(f"{site}/{name}", wait_until="networkidle")
        if size is WIDE:
            visit.formulas = page.locator("article math").count()
            visit.unwritten = page.evaluate(UNWRITTEN)
            visit.eager = page.evaluate(EAGER)
        else:
            page.evaluate("() => document.querySelectorAll('details').forEach(each => { each.open = true })")
            visit.overflow = page.evaluate(OVERFLOW)
            visit.empty_headers = page.evaluate(EMPTY_HEADERS)
        for mode in ("light", "dark"):
            page.emulate_media(color_scheme=mode)
            page.evaluate(SETTLED)
            visit.themes.append(page.evaluate("() => document.documentElement.dataset.theme"))
            visit.violations[f"{mode}, {size['width']}"] = violations(page)
        visit.pale += page.evaluate(PALE_BOXES)
        visit.boxes += page.evaluate(SCROLL_BOXES)
        context.close()
    return visit
