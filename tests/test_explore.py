"""The figures to explore: their data is that of the committed tables, and a click draws it."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import altair as alt
import jsonschema
import layerwise as lw
import numpy as np
import pandas as pd
import pytest
import vl_convert
from browsers import CHROMIUM, STATIC, browse
from layerwise.book import build, explore
from layerwise.claims import against_constant, changes
from layerwise.experiments.rows import window_rows

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "book" / "explore.md").read_text()
BUDGETS = pd.read_csv(ROOT / explore.BUDGETS, low_memory=False)


@pytest.fixture(scope="module")
def scripts():
    return {explore.SCRIPT.name: explore.explore_script(ROOT), explore.VEGA_SCRIPT.name: explore.vega_script()}


@pytest.fixture(scope="module")
def data(scripts):
    """What the page's script holds."""
    text = scripts[explore.SCRIPT.name]
    return json.loads(text.removeprefix("globalThis.exploreData = ").removesuffix(";\n"))


def test_every_budget_is_shown_as_its_table_has_it(data):
    parts = data["budgets"]["parts"]
    shown = pd.DataFrame(
        [[part["model"], part["quantizer"], *row] for part in parts for row in part["rows"]],
        columns=["short", "quantizer", "cost", "budget", "bytes", "kl", "low", "high"],
    )
    by = ["short", "quantizer", "cost", "budget"]
    table = BUDGETS.assign(short=BUDGETS["model"].str.split("/").str[-1])
    assert set(map(tuple, shown[by].values)) == set(map(tuple, table[by].values)) and not shown.duplicated(by).any()
    both = table.merge(shown, on=by, suffixes=("", " shown"))
    samples = both.groupby(by)
    for column, of in {"bytes": "mean", "kl": "mean", "kl_low": "min", "kl_high": "max"}.items():
        name = {"kl_low": "low", "kl_high": "high"}.get(column, f"{column} shown")
        np.testing.assert_allclose(samples[name].first(), samples[column].agg(of), rtol=1e-4)


def test_dense_models_have_their_own_size(data):
    for part in data["budgets"]["parts"]:
        if part["model"] in ("6L", "12L", "24L"):
            assert part["dense"] == lw.shape(lw.load(f"embedded/{part['model']}", device="cpu")[0]).total_bytes
    assert explore.dense_bytes(ROOT, "Qwen/Qwen2.5-0.5B") == 2 * 494_032_768
    assert explore.dense_bytes(ROOT, "nobody/knows-it") is None


@pytest.mark.parametrize(("equal", "path"), [("width", explore.GRID), ("bytes", explore.EQUAL_BYTES)])
def test_slices_are_shown_as_their_table_has_them(data, equal, path):
    table = pd.read_csv(ROOT / path, low_memory=False)
    parts = {part["model"]: part["rows"] for part in data["grid"]["parts"] if part["equal"] == equal}
    found = {(model, plan, sp, sb): values for model, rows in parts.items() for plan, sp, sb, *values in rows}
    settings = table.groupby(["model", "plan", "mean", "base"])
    assert len(found) == sum(map(len, parts.values())) == settings.ngroups
    by, names = ["model", "plan", "mean", "base"], [name for name in table if re.fullmatch(r"w\d+", name)]
    intervals = changes(window_rows(table), by, "loss").set_index(by)
    paired = changes(against_constant(window_rows(table)), by).set_index(by)
    for key, rows in settings:
        model, plan, mean, base = key
        values = np.array(found[model.split("/")[-1], plan, round(100 * mean, 6), round(100 * base, 6)], float)
        # The means over samples and windows, worked out without the library.
        dense = rows.set_index("draw")[names]
        constant = settings.get_group((model, "constant", mean, mean)).set_index("draw")[names]
        assert values[0] == pytest.approx(np.exp(np.nanmean(dense)), rel=1e-4)
        np.testing.assert_allclose(values[1:3], 1 + intervals.loc[key, ["low", "high"]], rtol=1e-4)
        if plan == "constant":
            assert np.isnan(values[3:]).all()
        else:
            assert values[3] == pytest.approx(np.exp(np.nanmean(dense - constant)), rel=1e-4)
            np.testing.assert_allclose(values[4:], 1 + paired.loc[key, ["low", "high"]].astype(float), rtol=1e-4)


@pytest.mark.parametrize("name", ["budgets", "grid"])
def test_figures_are_valid_vega_lite_of_the_version_that_is_served(data, scripts, name):
    figure = data[name]["figure"]
    assert isinstance(alt.Chart.from_dict(figure, validate=True), alt.LayerChart)
    with pytest.raises(jsonschema.ValidationError):
        alt.Chart.from_dict(figure | {"layer": [{"mark": "streak"}]}, validate=True)
    made = vl_convert.vegalite_to_vega(figure | {"data": {"values": []}}, vl_version=alt.SCHEMA_VERSION[:4])
    assert {mark["type"] for mark in made["marks"]} >= {"rule", "symbol"}
    assert f'"{alt.SCHEMA_VERSION[1:]}"' in scripts[explore.VEGA_SCRIPT.name]


def test_the_staged_book_has_what_the_page_loads_and_the_repository_has_not(tmp_path, scripts):
    (tmp_path / "book").mkdir()
    for name in ("_config.yml", "_toc.yml", "book/explore.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "results", tmp_path / "results")
    folder = build.stage(tmp_path, {}) / "book" / "_static"
    assert {path.name: path.read_text() for path in folder.iterdir()} == scripts
    assert len(scripts[explore.SCRIPT.name]) < 200_000
    assert "Redistributions in binary form" in scripts[explore.VEGA_SCRIPT.name][:2000]
    named = set(re.findall(r'"\.\./_static/([^"]*)"', PAGE))
    assert named - scripts.keys() == {path.name for path in STATIC.glob("explore*")} and scripts.keys() < named
    # Vega comes when it is asked for.
    assert explore.VEGA_SCRIPT.name not in re.findall(r'src="\.\./_static/([^"]+)"', PAGE)
    tracked = subprocess.run(["git", "ls-files", "book"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not any(name in tracked for name in scripts)


def test_the_page_asks_no_other_host_and_says_what_it_needs(scripts):
    for text in (PAGE, scripts[explore.SCRIPT.name], *(path.read_text() for path in STATIC.glob("explore*"))):
        assert "://" not in text
    assert "JavaScript" in re.search(r"<noscript>(.*?)</noscript>", PAGE)[1]


# The page itself.

ACTING = """
const at = (name) => document.getElementById(name);
const found = { errors: [] };
addEventListener("error", ({ message }) => found.errors.push(message));
addEventListener("unhandledrejection", ({ reason }) => found.errors.push(`${reason}`));
const wait = (ready) => new Promise((go) => {
  const look = setInterval(() => ready() && (clearInterval(look), go()), 20);
});
const pause = () => new Promise((go) => setTimeout(go, 500));
const texts = (nodes) => [...nodes].map((node) => node.textContent);
/** What stands in a figure: its marks by layer and where they are, axis titles, key, table and choices. */
const look = (id) => {
  const root = at(`explore-${id}`);
  const marks = [...root.querySelectorAll("svg .mark-symbol.role-mark, svg .mark-line.role-mark")];
  return {
    points: root.querySelectorAll("svg .mark-symbol.role-mark path").length,
    intervals: root.querySelectorAll("svg .mark-rule.role-mark line").length,
    lines: root.querySelectorAll("svg .mark-line.role-mark path").length,
    drawn: marks.map((mark) => mark.innerHTML).join(""),
    width: root.querySelector("svg").getBoundingClientRect().width,
    said: texts(root.querySelectorAll("svg text")),
    key: texts(root.querySelectorAll(".key > span")),
    rows: [...root.querySelectorAll("tbody tr")].map((row) => texts(row.children)),
    choices: [...root.querySelectorAll("select")].map((select) => texts(select.options)),
    chosen: [...root.querySelectorAll("select")].map((select) => select.value),
    still: document.querySelectorAll(`#part-${id} figure`).length,
  };
};
const open = async (id) => {
  document.querySelector(`#explore-${id} button`).click();
  await wait(() => document.querySelector(`#explore-${id} svg .mark-symbol path`));
  await pause();
};
const choose = async (name, value) => {
  at(name).value = value;
  at(name).dispatchEvent(new Event("change"));
  await pause();
};
addEventListener("load", async () => {
  try {
    %s
  } catch (error) {
    found.errors.push(`${error}`);
  }
  at("found").textContent = JSON.stringify(found);
});
"""


@pytest.fixture
def act(tmp_path, scripts):
    """What some JavaScript, acting on the page, has noted."""
    if not CHROMIUM:
        pytest.skip("chromium isn't installed")

    def acted(do, without=()):
        (tmp_path / "_static").mkdir()
        for name, text in scripts.items():
            if name not in without:
                (tmp_path / "_static" / name).write_text(text)
        # Of the page the parts in HTML, each of the first two with a still figure below it.
        *parts, load = re.findall(r"```\{raw\} html\n(.*?)```", PAGE, re.DOTALL)
        names = [re.search(r'id="explore-(\w+)"', part)[1] for part in parts]
        body = "".join(
            f"<section id='part-{name}'>{part}<figure>still</figure></section>"
            for name, part in zip(names, parts, strict=True)
        )
        body += load
        dom = browse(tmp_path, f"{body}<pre id='found'></pre><script>{ACTING % do}</script>", milliseconds=20_000)
        return json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)[1]))

    return acted


def test_a_click_draws_budgets_and_a_choice_changes_them(act, data):
    found = act("""
    found.button = at("explore-budgets").querySelector("button").textContent;
    found.before = [!!globalThis.vega, document.querySelectorAll("figure").length];
    await open("budgets");
    found.first = look("budgets");
    found.focus = document.activeElement.id;
    await choose("budgets-choice", "random");
    found.random = look("budgets");
    await choose("budgets-model", "12L");
    found.other = look("budgets");
    await choose("budgets-kind", "hqq");
    found.hqq = look("budgets");
    document.documentElement.dataset.theme = "dark";
    document.documentElement.style.setProperty("color", "rgb(1, 2, 3)");
    await pause();
    found.dark = document.querySelector("#explore-budgets svg text").getAttribute("fill");
    found.nameless = [...document.querySelectorAll("select")].filter((each) => !each.labels.length).length;
    """)
    assert found["errors"] == [] and found["nameless"] == 0
    megabytes = round(len(explore.vega_script()) / 1e6, 1)
    assert found["button"] == f"Show the interactive figure, {megabytes} MB" and found["before"] == [False, 2]
    parts = {(part["model"], part["quantizer"]): part for part in data["budgets"]["parts"]}
    names = list(dict.fromkeys(model for model, _ in parts))
    assert found["first"]["choices"][0] == names and found["focus"] == "budgets-model"
    assert found["first"]["chosen"] == [names[0], "rtn", "LIM"] and found["first"]["still"] == 0
    assert found["other"]["chosen"] == ["12L", "rtn", "random"] and found["hqq"]["chosen"] == ["12L", "hqq", "random"]
    for name in ("first", "random", "other", "hqq"):
        shown, part = found[name], parts[tuple(found[name]["chosen"][:2])]
        chosen = [shown["chosen"][2], "lw.fit", "uniform"]
        own = [row for row in part["rows"] if re.sub(r" \d+$", "", row[0]) in chosen]
        # Each point is drawn, and has a mark to point at.
        assert shown["points"] == 2 * len(part["rows"])
        assert shown["intervals"] == len(own)
        assert shown["lines"] == len({row[0] for row in part["rows"]})
        assert shown["key"] == ["● lw.fit", "■ uniform", f"◆ {chosen[0]}", "― other ways"]
        assert {"KL, nats", "bytes, share of dense"} <= set(shown["said"])
        for row, (way, budget, size, kl, low, high) in zip(shown["rows"], part["rows"], strict=True):
            assert row[0] == way and float(row[1]) == budget
            np.testing.assert_allclose([float(row[2]), float(row[4])], [size / 1e6, kl], rtol=6e-3)
            assert float(row[3].removesuffix(" %")) == pytest.approx(100 * size / part["dense"], abs=0.06)
            np.testing.assert_allclose([float(end) for end in row[5].split(" to ")], [low, high], rtol=6e-3)
    drawn = [found[name]["drawn"] for name in ("first", "random", "other", "hqq")]
    assert len(set(drawn)) == 4 and found["first"]["width"] > 400
    assert found["dark"].replace(" ", "") == "rgb(1,2,3)"


def test_slices_of_equal_width_and_bytes_are_drawn_by_their_base(act, data):
    found = act("""
    await open("grid");
    found.few = look("grid");
    await choose("grid-model", "6L");
    found.none = look("grid");
    await choose("grid-choice", "10 %");
    found.fixed = look("grid");
    await choose("grid-kind", "bytes");
    await choose("grid-choice", "SP / 2");
    found.bytes = look("grid");
    await choose("grid-over", "constant");
    found.over = look("grid");
    await choose("grid-over", "dense");
    await choose("grid-model", "smollm2-135m");
    found.again = look("grid");
    """)
    assert found["errors"] == []
    # It has no plans of equal bytes.
    assert found["few"]["chosen"] == ["smollm2-135m", "width", "0 %", "dense"] and found["few"]["intervals"] == 2
    assert found["again"] == found["few"]
    assert [found[name]["chosen"][1:3] for name in ("none", "fixed", "bytes")] == [
        ["width", "0 %"],
        ["width", "10 %"],
        ["bytes", "SP / 2"],
    ]
    parts = {part["equal"]: part["rows"] for part in data["grid"]["parts"] if part["model"] == "6L"}
    is_chosen = {
        "none": lambda sp, sb: sb == 0,
        "fixed": lambda sp, sb: sb == 10,
        "bytes": lambda sp, sb: sb > 0,
    }
    for name, chosen in is_chosen.items():
        rows = parts[found[name]["chosen"][1]]
        own = [row for row in rows if row[0] == "constant" or chosen(*row[1:3])]
        assert found[name]["points"] == 2 * len(rows) and found[name]["intervals"] == len(own)
        base = found[name]["chosen"][2]
        assert found[name]["key"] == ["■ constant slicing", f"◆ dynamic, SB {base}", "― other SB"]
        said = [[float(row[1]), float(row[2]), float(row[3])] for row in found[name]["rows"]]
        np.testing.assert_allclose(said, [row[1:4] for row in rows], rtol=6e-4)
    over = [[float(row[1]), float(row[2]), float(row[3])] for row in found["over"]["rows"]]
    expected = [[*row[1:3], 1 if row[0] == "constant" else row[6]] for row in parts["bytes"]]
    np.testing.assert_allclose(over, expected, rtol=6e-4)
    assert len({found[name]["drawn"] for name in (*is_chosen, "over")}) == 4


def test_without_vega_the_page_says_so_and_keeps_the_still_figure(act):
    found = act(
        """
    document.querySelector("#explore-grid button").click();
    await wait(() => document.querySelector("#explore-grid .state").textContent.includes("loaded"));
    found.still = document.querySelectorAll("#part-grid figure").length;
    """,
        without=[explore.VEGA_SCRIPT.name],
    )
    assert found["errors"] == [] and found["still"] == 1
