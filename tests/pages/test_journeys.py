"""What readers do in the built book: search, plan for a card, explore results, read claims on a phone."""

from urllib.parse import urlsplit

import pytest
from browsing import NARROW, OVERFLOW, PALE_BOXES, SCROLL_BOXES, SETTLED, SITE, WIDE, Visit, violations, watch

IN_VIEW = "mark => { const {top, bottom} = mark.getBoundingClientRect(); return top >= 0 && bottom <= innerHeight }"


def results(page):
    """The pages that a search has listed, once it is done."""
    page.locator("#search-results .search-summary", has_text="Search finished").wait_for()
    return page.locator("ul.search > li > a").evaluate_all("links => links.map(link => link.getAttribute('href'))")


def search(page, site, words):
    """Search as a reader does, from the landing page."""
    page.goto(f"{site}/book/index.html")
    page.locator(".search-button-field:visible, .search-button:visible").first.click()
    page.locator("#pst-search-dialog input").fill(words)
    page.keyboard.press("Enter")
    return results(page)


def test_searching_for_a_score_finds_where_it_is_defined_and_measured(page, site):
    found = search(page, site, "LIM")
    first = [address.split("#")[0] for address in found[:3]]
    assert "book/definitions.html" in first and "notebooks/layer_importance.html" in first, found
    assert violations(page) == []


@pytest.mark.parametrize(("words", "chapter"), [("slicing", "dynamic_slicing"), ("memory", "what_fits")])
def test_a_result_opens_at_the_match(page, site, words, chapter):
    address = next(each for each in search(page, site, words) if each == f"notebooks/{chapter}.html")
    page.locator(f"ul.search a[href='{address}']").first.click()
    page.wait_for_url(f"**/{address}")
    page.wait_for_load_state("networkidle")
    page.wait_for_function(f"[...document.querySelectorAll('article .highlighted')].some({IN_VIEW})")
    assert page.locator("span.highlighted:not(article *)").count() == 0
    shown = page.locator("span.highlighted").evaluate_all("marks => marks.map(mark => mark.textContent)")
    assert {text.lower() for text in shown} == {words}


def test_choosing_a_model_and_a_card_changes_the_answer(page, site):
    page.goto(f"{site}/book/planner.html")
    model, verdict = page.locator("#planner-model"), page.locator("#planner-verdict strong")
    options = model.locator("option").evaluate_all("options => options.map(option => option.value)")
    smallest, largest = options[0], options[-2]  # the last one is a configuration to paste
    page.locator("#planner-cards label", has_text="24").click()
    said = []
    for name, card in ((smallest, 24), (largest, 24), (largest, 141)):
        model.select_option(name)
        page.locator("#planner-cards label", has_text=f"{card}").click()
        said.append((verdict.get_attribute("class"), verdict.inner_text()))
    assert [kind for kind, _ in said] == ["yes", "no", "yes"], said
    assert len({text for _, text in said}) == 3


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["laptop", "phone"])
def test_a_click_shows_figures_to_explore(page, site, size):
    """Drawn as wide as the page is, by keyboard too, accessible, light and dark, without a request to elsewhere."""
    visit = Visit()
    watch(page, urlsplit(site).netloc, visit)
    page.set_viewport_size(size)
    page.goto(f"{site}/book/explore.html", wait_until="networkidle")
    assert not [path for path in visit.loaded if "vega" in path]
    for name in ("budgets", "grid"):
        figure = page.locator(f"#explore-{name}")
        figure.get_by_role("button").press("Enter")
        drawn = figure.locator("svg .mark-line path")
        drawn.first.wait_for(state="attached")
        assert figure.locator("svg").bounding_box()["width"] == pytest.approx(figure.bounding_box()["width"], abs=20)
        before = drawn.evaluate_all("paths => paths.map(path => path.getAttribute('d')).join()")
        page.keyboard.press("End")  # the last of the models: the list has the focus
        page.wait_for_function(
            "([id, before]) => { const paths = document.querySelectorAll(`#${id} svg .mark-line path`);"
            "return paths.length && [...paths].map(path => path.getAttribute('d')).join() !== before }",
            arg=[f"explore-{name}", before],
        )
        figure.locator("summary").click()
    for mode in ("light", "dark"):
        page.emulate_media(color_scheme=mode)
        page.evaluate(SETTLED)
        assert violations(page) == []
    assert page.evaluate(OVERFLOW) <= 0 and page.evaluate(PALE_BOXES) == []
    assert [box for box in page.evaluate(SCROLL_BOXES) if not (box["reached"] and box["named"])] == []
    assert (visit.console, visit.failed, visit.elsewhere) == ([], [], [])


@pytest.mark.parametrize("name", ["book/claims", "notebooks/claims"])
def test_claims_can_be_read_on_a_phone(page, site, name):
    """What a line is about stays where its verdicts scroll, no letter is too small, and no word is cut off."""
    page.set_viewport_size(NARROW)
    page.goto(f"{site}/{name}.html")
    table = page.locator("article table", has_text="claim").first
    cells = table.locator("tr > *").evaluate_all(
        """cells => cells.filter(cell => cell.checkVisibility()).map(cell => ({
            text: cell.innerText, letters: parseFloat(getComputedStyle(cell).fontSize),
            cut: cell.scrollWidth > cell.clientWidth + 1,
        }))"""
    )
    assert len(cells) > 20 and min(cell["letters"] for cell in cells) >= 12
    assert [cell["text"] for cell in cells if cell["cut"]] == []
    first = table.locator("tbody tr:first-child > :first-child")
    before = first.bounding_box()["x"]
    table.evaluate("table => { table.style.width = '900px'; table.closest('.output').scrollLeft = 500 }")
    assert first.bounding_box()["x"] == pytest.approx(before, abs=2) and 0 <= before < 40


def test_data_below_a_chapter_is_a_file_with_all_its_rows(page, site):
    page.goto(f"{site}/notebooks/depth.html")
    link = page.locator("a.download-data").first
    with page.expect_download() as downloaded:
        link.click()
    rows = downloaded.value.path().read_text().splitlines()
    assert f"({len(rows) - 1} rows)" in link.inner_text() and rows[0].count(",") > 1


@pytest.mark.parametrize("name", ["book/index", "book/planner", "book/explore", "notebooks/dynamic_slicing"])
def test_pages_work_without_a_server(page, name):
    visit = Visit()
    watch(page, "", visit)
    page.goto((SITE / f"{name}.html").as_uri(), wait_until="networkidle")
    assert page.locator("article h1").is_visible()
    assert (visit.console, visit.failed, visit.elsewhere) == ([], [], [])
