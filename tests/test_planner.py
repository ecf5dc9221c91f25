"""The planner: the page computes what the library does, and says it in words that can be pasted."""

import ast
import csv
import html
import json
import re
import shlex
import shutil
from pathlib import Path

import browsers
import layerwise as lw
import numpy as np
import pytest
from browsers import CHROMIUM, STATIC, browse
from families import VARIANTS, config
from layerwise.__main__ import fit_parser
from layerwise.book import build, planner
from layerwise.plans import by_part, number_of_bytes
from transformers import AutoConfig

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "book" / "planner.md").read_text()
MODELS = planner.configurations(ROOT)
KNOWN = ("gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3")


def evaluate(engine, folder, expression, data=None):
    """The value of an expression of JavaScript, once the planner's data and formulas are there."""
    return browsers.evaluate(
        engine, folder, f"{data or planner.script(ROOT)}\n{(STATIC / 'planner.js').read_text()}", expression
    )


def known(fields):
    """The configuration that transformers makes of these fields."""
    return AutoConfig.for_model(**{key: value for key, value in fields.items() if key not in ("name", "parameters")})


def sizes(shape):
    """What the page should say of a shape."""
    uniform = [by_part(shape, [bits] * len(shape.parts)).predicted_bytes(shape) for bits in planner.UNIFORM]
    return [shape.total_parameters, shape.total_bytes, shape.cache_bytes, *uniform]


SIZES = """(shape => [shape.parameters, shape.bytes, shape.cacheBytes,
    ...plannerData.uniform.map(bits => planner.bytesAt(shape, bits))])"""


@pytest.fixture(scope="module")
def shapes():
    return {fields["name"]: lw.shape(known(fields)) for fields in MODELS}


def test_configurations_are_those_of_the_published_models(shapes):
    """Their parameters are as many as the published files have, which are counted there, not computed."""
    assert {name: shape.total_parameters for name, shape in shapes.items()} == {
        fields["name"]: fields["parameters"] for fields in MODELS
    }
    assert min(s.total_parameters for s in shapes.values()) < 0.5e9 and 405e9 < max(
        s.total_parameters for s in shapes.values()
    )
    with open(ROOT / planner.MODELS, newline="") as file:
        assert all(row["source"] for row in csv.DictReader(file))


def test_sizes_are_those_of_the_library(engine, tmp_path, shapes):
    found = evaluate(engine, tmp_path, f"plannerData.models.map(model => {SIZES}(planner.shapeOf(model)))")
    assert found == [sizes(shape) for shape in shapes.values()]


def test_pasted_configurations_are_understood_as_transformers_does(any_engine, tmp_path):
    """Families and variants of them, whole and without what has a default."""
    configs = [config(family) for family in KNOWN]
    configs += [config(family, **changes) for family, changes in VARIANTS.values() if family in KNOWN]
    configs += [config(family, attention_bias=True, mlp_bias=True) for family in KNOWN]
    configs += [config(family, tie_word_embeddings=tied) for family in KNOWN for tied in (True, False)]
    pasted = [json.loads(each.to_json_string(use_diff=False)) for each in configs]
    few = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    short = [{key: each[key] for key in (*few, "vocab_size", "model_type")} for each in pasted[: len(KNOWN)]]
    short = [each | {"hidden_size": 64, "pad_token_id": None} for each in short]
    wanted = [lw.shape(each) for each in configs] + [lw.shape(AutoConfig.for_model(**each)) for each in short]
    found = evaluate(any_engine, tmp_path, f"{json.dumps(pasted + short)}.map(one => {SIZES}(planner.shapeOf(one)))")
    assert found == [sizes(shape) for shape in wanted]


def test_other_configurations_are_errors_that_say_what_is_known(any_engine, tmp_path):
    wrong = [{}, {"model_type": "mixtral"}, {"model_type": "llama", "hidden_size": 8}]
    wrong += [MODELS[0] | {"quantization_config": {"bits": 4}}, MODELS[0] | {"dtype": "int8"}]
    say = "(one => { try { planner.shapeOf(one) } catch (error) { return error.message } })"
    nothing, experts, missing, few, dtype = evaluate(any_engine, tmp_path, f"{json.dumps(wrong)}.map({say})")
    assert "without model_type" in nothing and '"mixtral"' in experts and f"It knows {', '.join(KNOWN)};" in experts
    assert "intermediate_size, num_hidden_layers" in missing and "hidden_size," not in missing.split("for")[0]
    assert "few bits already" in few and "dtype must be" in dtype


def test_verdicts_are_those_of_the_library(any_engine, tmp_path, shapes):
    asked = [(name, card, context) for name in shapes for card in planner.CARDS for context in (0, 4096, 100_000)]
    one = "([name, card, context]) => planner.answer(planner.shapeOf(models[name]), card, context)"
    models = json.dumps({fields["name"]: fields for fields in MODELS})
    expression = f"(models => {json.dumps(asked)}.map({one}))({models})"
    answers, seen = evaluate(any_engine, tmp_path, expression), set()
    for (name, card, context), found in zip(asked, answers, strict=True):
        shape, budget = shapes[name], card * 10**9 - planner.ASIDE
        cache = context * shape.cache_bytes
        least = by_part(shape, [2] * len(shape.parts)).predicted_bytes(shape)
        verdict = "dense" if shape.total_bytes + cache <= budget else "fitted" if least + cache <= budget else "none"
        assert (found["verdict"], found["budget"], found["cache"]) == (verdict, budget, cache)
        own = found["own"]
        assert own is None or least + cache <= own <= budget - found["unpacked"]
        assert found["fitted"]["perWeight"] == pytest.approx(8 * (budget - cache) / shape.total_parameters)
        for way in found["ways"]:
            assert way["fits"] == (way["bytes"] + cache <= budget)
        if found.get("smallest"):
            assert least + cache + planner.ASIDE <= found["smallest"] * 1e9
        seen.add(verdict)
    assert seen == {"dense", "fitted", "none"}


@pytest.mark.parametrize("card", [1.14, 1.15, 1.6])
def test_what_fits_by_need_is_what_can_be_allocated(any_engine, tmp_path, shapes, card):
    """Qwen2.5-0.5B takes 0.15 GB at 2 bits: the answer turns where `lw.plans.allocate` finds no plan."""
    shape, context = shapes["Qwen/Qwen2.5-0.5B"], 128
    fields = next(fields for fields in MODELS if fields["name"] == "Qwen/Qwen2.5-0.5B")
    found = evaluate(any_engine, tmp_path, f"planner.answer(planner.shapeOf({json.dumps(fields)}), {card}, {context})")
    widths = [2, 3, 4, 5, 6, 8, None]
    costs = np.random.default_rng(0).random((len(shape.parts), 1)) * [4.0**-bits if bits else 0 for bits in widths]

    def allocated():
        return lw.plans.allocate(shape, costs, found["budget"], widths, context=context).predicted_bytes(shape)

    if found["verdict"] == "none":
        with pytest.raises(ValueError, match="no plan takes"):
            allocated()
    else:
        assert 0.98 * found["fitted"]["bytes"] < allocated() <= found["fitted"]["bytes"]
        sizes = [by_part(shape, [bits] * len(shape.parts)).predicted_bytes(shape) for bits in widths[:-1]]
        assert found["fitted"]["budget"] == pytest.approx(np.interp(found["fitted"]["bytes"], sizes, widths[:-1]))
    assert (found["verdict"] == "none") == (card < 1.15)


def test_running_by_layerwise_itself_takes_what_the_page_says(any_engine, tmp_path):
    fields = MODELS[0] | {"num_hidden_layers": 2, "vocab_size": 100_000}
    made, length = known(fields), 32
    plan = by_part(lw.shape(made), [4] * len(lw.shape(made).parts))
    serving = lw.memory(made, plan, windows=1, length=length, batch=1).serving
    unpacked = evaluate(any_engine, tmp_path, f"planner.answer(planner.shapeOf({json.dumps(fields)}), 6, 0).unpacked")
    told = plan.predicted_bytes(lw.shape(made)) + length * lw.shape(made).cache_bytes + unpacked
    assert told == pytest.approx(serving, rel=0.02)


# Quality.


@pytest.fixture
def measured(tmp_path):
    """A folder with the models and made-up results of two of them."""
    folder = tmp_path / "measured"
    (folder / planner.MEASURED.parent).mkdir(parents=True)
    shutil.copy(ROOT / planner.MODELS, folder / planner.MODELS)
    rows = [
        ("6L", 0, "lw.fit", "rtn", 4, 0.01, 0.009, 0.011),
        ("packaged/real", 0, "lw.fit", "rtn", 4, 0.2, 0.15, 0.25),
        ("packaged/real", 1, "lw.fit", "rtn", 4, 0.4, 0.35, 0.45),
        ("packaged/real", 0, "lw.fit", "rtn", 3, 1.5, 1.4, 1.6),
        ("packaged/real", 0, "lw.fit", "hqq", 4, 9, 9, 9),
        ("packaged/real", 0, "Fisher", "rtn", 4, 9, 9, 9),
        ("packaged/real", 0, "uniform", "rtn", 4, 0.7, 0.6, 0.8),
    ]
    with open(folder / planner.MEASURED, "w", newline="") as file:
        fields = ["model", "draw", "cost", "quantizer", "budget", "kl", "kl_low", "kl_high"]
        csv.writer(file).writerows([fields, *rows])
    return folder


def test_quality_is_the_mean_over_samples_within_all_their_intervals(measured):
    real, ours = planner.quality(measured)
    assert real == {
        "model": "real", "pretrained": True,
        "fit": [[3, 1.5, 1.4, 1.6], [4, 0.3, 0.15, 0.45]], "uniform": [[4, 0.7, 0.6, 0.8]],
    }  # fmt: skip
    assert ours == {"model": "6L", "pretrained": False, "fit": [[4, 0.01, 0.009, 0.011]], "uniform": []}


def test_quality_is_told_at_the_nearest_budget_below(any_engine, tmp_path, measured):
    one = "[2.9, 3, 3.99, 4, 16].map(budget => planner.measured(plannerData.quality[0], 'fit', budget)?.budget)"
    assert evaluate(any_engine, tmp_path, one, planner.script(measured)) == [None, 3, 3, 4, 4]
    none = "planner.measured(plannerData.quality[1], 'uniform', 8)"
    assert evaluate(any_engine, tmp_path, none, planner.script(measured)) is None


def test_without_results_there_is_no_quality(measured):
    (measured / planner.MEASURED).unlink()
    assert planner.quality(measured) == []


# The page itself.


def shown(folder, place="", root=ROOT, do=""):
    """Texts of the parts of the page by their name, as Chromium shows it at an address, after some JavaScript."""
    if not CHROMIUM:
        pytest.skip("chromium isn't installed")
    (folder / "_static").mkdir(exist_ok=True)
    (folder / "_static" / planner.SCRIPT.name).write_text(planner.script(root))
    body = re.search(r"```\{raw\} html\n(.*?)```", PAGE, re.DOTALL)[1]
    dom = browse(folder, f"{body}<script>addEventListener('load', () => {{ {do} }})</script>", place)
    seen = re.sub(r'<(\w+)[^>]*\bhidden="">.*?</\1>', "", dom, flags=re.DOTALL)
    parts = re.findall(r'id="planner-(\w+)"[^>]*>(.*?)(?=<\w+ [^>]*id="planner-|</form>)', seen, re.DOTALL)
    lines = re.findall(r'<pre class="(\w+)"[^>]*>(.*?)</pre>', seen, re.DOTALL)
    title = re.findall(r"<(title)>(.*?)</title>", dom, re.DOTALL)
    return {name: html.unescape(re.sub(r"<[^>]+>", " ", text)) for name, text in [*parts, *lines, *title]}


def test_a_reader_with_7b_and_6_gb_has_the_answer_at_once(tmp_path, measured):
    page = shown(tmp_path, root=measured)
    assert re.search(r"✓ Qwen2.5-7B fits on 6 GB at [345]\.\d\d bits per weight", page["verdict"])
    assert re.search(r"budget of 4 bits \(yours: 4\.\d\d\): 0.3 \(0.15 to 0.45\) on real\.", page["cost"])
    assert "0.01 (0.009 to 0.011) on 6L." in page["cost"]
    assert re.search(r"Dense\s+15.2 GB\s+✗ no\s+0\s+0", page["ways"])
    assert re.search(r"3 bits\s+3.21 GB\s+✓ yes\s+31,156\s+–", page["ways"])
    assert re.search(r"4 bits\s+4.17 GB\s+✓ yes\s+14,556\s+0.7\s", page["ways"])
    words = shlex.split(page["command"].replace("\\\n", " "))
    options = fit_parser().parse_args(words[words.index("layerwise") + 1 :])
    assert (options.name, options.context, number_of_bytes(options.bytes)) == ("Qwen/Qwen2.5-7B", 4096, 5 * 10**9)
    calls = {ast.unparse(node.func): node for node in ast.walk(ast.parse(page["python"])) if isinstance(node, ast.Call)}
    told = {each.arg: ast.literal_eval(each.value) for each in calls["lw.fit"].keywords}
    assert told == {"bytes": options.bytes, "context": 4096}


def test_an_address_has_its_answer_and_what_was_not_measured_says_so(tmp_path, measured):
    (measured / planner.MEASURED).unlink()
    page = shown(tmp_path, "#model=Llama-3.1-8B&card=8&context=8192", measured)
    assert "✓ Llama-3.1-8B fits on 8 GB" in page["verdict"] and "not measured yet" in page["cost"]


def test_what_fits_nowhere_says_which_card_would_do(tmp_path):
    page = shown(tmp_path, "#model=Llama-3.1-405B&card=80&context=0")
    assert "✗ Llama-3.1-405B doesn't fit on 80 GB" in page["verdict"] and "141 GB would do" in page["verdict"]
    assert "Missing" in page["picture"] and not {"command", "python"} & set(page)


PASTE = """
for (const [name, value] of [["model", "other"], ["config", %s], ["card", "%s"]]) {
  const field = document.getElementById(`planner-${name}`);
  field.value = value;
  field.dispatchEvent(new Event("input"));
}
"""


def test_a_configuration_can_be_pasted(tmp_path):
    pasted = json.dumps(json.dumps(MODELS[0] | {"_name_or_path": "someone/small"}))
    page = shown(tmp_path, do=PASTE % (pasted, 1.5))
    assert "✓ small fits on 1.5 GB as it is" in page["verdict"] and 'lw.load("someone/small")' in page["python"]


def test_what_cannot_be_answered_says_why(tmp_path):
    """The last of three messages is left on the page, the others are kept in its title."""
    title = "document.title += document.getElementById('planner-wrong').textContent;"
    asked = [("{", 6), ('{"model_type": "mixtral"}', 6), ("{}", "")]
    page = shown(tmp_path, do=title.join(f"{{{PASTE % (json.dumps(pasted), card)}}}" for pasted, card in asked))
    assert (
        "number of gigabytes" in page["wrong"] and "whole config.json" in page["title"] and "mixtral" in page["title"]
    )
    assert not page["verdict"].strip() and "python" not in page


def test_every_field_has_a_name():
    for field in re.findall(r"<(?:input|select|textarea)\b[^>]*>", PAGE):
        name = re.search(r'\bid="([^"]+)"', field)[1]
        assert f'for="{name}"' in PAGE or "aria-label=" in field, field


def test_the_page_is_found_first_and_asks_no_other_host():
    index = (ROOT / "book" / "index.md").read_text()
    assert re.search(r"grid-item-card\}.*\n:link: (\S+)", index)[1] == "planner"
    for file in (ROOT / "book" / "planner.md", *STATIC.glob("planner*")):
        assert "://" not in file.read_text(), file


def test_the_staged_book_has_what_the_page_computes_with(measured):
    (measured / "book").mkdir()
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, measured)
    shutil.copy(ROOT / "book" / "planner.md", measured / "book")
    staged = build.stage(measured, {}) / planner.SCRIPT
    assert staged.read_text() == planner.script(measured)
    assert staged.parent == measured / "_build" / "stage" / "book" / "_static"
    sources = re.findall(r'src="\.\./_static/([^"]+)"', PAGE)
    assert staged.name in sources and all((STATIC / name).is_file() for name in sources if name != staged.name)
