"""Every page of the built book in headless Chromium: `make test-pages`."""

import pytest
from browsing import PAGES

RICH = "notebooks/dynamic_slicing.html"
MOST = 1_000_000  # bytes that a page loads besides its pictures, unpacked


# With several workers, all tests of a page run where it has been visited.
@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in PAGES])
def visit(request, visits):
    return visits(request.param)


def test_it_loads_everything_from_here_and_without_an_error(visit):
    assert (visit.console, visit.failed, visit.elsewhere) == ([], [], [])


def test_it_is_light(visit):
    weight = sum(visit.loaded.values())
    heaviest = sorted(visit.loaded.items(), key=lambda item: -item[1])[:5]
    assert 0 < weight < MOST, heaviest
    assert visit.eager == []


def test_no_formula_needs_a_script(visit):
    """It is MathML, all of it, and so nothing is loaded for it."""
    assert not [path for path in visit.loaded if "mathjax" in path.lower()]
    assert visit.unwritten == []


def test_it_is_accessible_in_light_and_dark_on_a_laptop_and_a_phone(visit):
    assert visit.themes == ["light", "dark", "light", "dark"]
    assert {look: found for look, found in visit.violations.items() if found} == {}
    assert visit.empty_headers == []


def test_dark_mode_has_no_pale_boxes(visit):
    assert visit.pale == []


def test_a_phone_scrolls_down_only(visit):
    assert visit.overflow <= 0


def test_boxes_that_scroll_are_reached_by_keyboard_and_have_a_name(visit):
    assert [box for box in visit.boxes if not (box["reached"] and box["named"])] == []


@pytest.mark.xdist_group(RICH)
def test_a_page_with_formulas_pictures_and_wide_tables_has_them(visits):
    """What the tests above look at is found where it is."""
    visit = visits(RICH)
    assert visit.formulas and visit.pictures and visit.boxes
