"""The model to play with: the page computes what PyTorch and the library do, and shows it."""

import copy
import html
import json
import re
import shutil
import subprocess
from itertools import islice
from pathlib import Path

import browsers
import layerwise as lw
import numpy as np
import pytest
import torch
from browsers import CHROMIUM, STATIC, browse
from layerwise.book import build, play
from layerwise.quantization import RTN
from layerwise.quantization.packed import dequantized
from layerwise.world import KINDS, data
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "book" / "play.md").read_text()
DENSE = ["dense"] * 6
LAST = 8  # tokens whose logits are compared, and those of all in the losses


@pytest.fixture(scope="module")
def model():
    return lw.load(f"embedded/{play.NAME}", device="cpu")[0]


@pytest.fixture(scope="module")
def tokenizer():
    return lw.world.tokenizer()


@pytest.fixture(scope="module")
def scripts():
    return {play.SCRIPT.name: play.data_script(), play.WEIGHTS_SCRIPT.name: play.weights_script()}


@pytest.fixture
def evaluate(tmp_path, scripts):
    """The value of an expression of JavaScript, where the model and its tokenizer are there."""
    made = "const model = play.model(playData.config, playWeights), tokenizer = play.tokenizer(playData.tokenizer);"
    code = "\n".join([*scripts.values(), (STATIC / "play.js").read_text(), made])
    return lambda engine, expression: browsers.evaluate(engine, tmp_path, code, expression)


@pytest.fixture(scope="module")
def texts(tokenizer):
    """Windows of one text of each kind, and one that fills the context."""
    own = [tokenizer(text)["input_ids"] for kind in KINDS for text, _ in islice(data.documents("test", 3, kind), 1)]
    return [torch.tensor([ids]) for ids in own] + [lw.tokens(tokenizer, "world", split="test", n=1, length=256)]


def set_to(model, settings):
    """A copy of the model as the page's settings say: each block dense, off or at so many bits."""
    gone, found = settings.count("off"), copy.deepcopy(model)
    if gone:
        plan = lw.plans.drop(lw.shape(model), [setting != "off" for setting in settings], gone)
        found = lw.compress(found, plan)
    left = [setting for setting in settings if setting != "off"]
    return RTN()(found, [None if setting == "dense" else setting for setting in left])


CASES = [
    DENSE,
    *([DENSE[:i] + ["off"] + DENSE[i + 1 :] for i in (0, 3, 5)]),
    *([bits] * 6 for bits in (8, 4, 3, 2)),
    ["dense", 2, "off", 4, "off", 8],
]


def test_logits_and_losses_are_those_of_pytorch(engine, evaluate, model, texts):
    asked = [(i, settings) for i in range(len(texts)) for settings in (CASES if i == 1 else (CASES[2], CASES[-1]))]
    one = f"""([i, settings]) => {{
        const ran = play.run(model, texts[i], settings);
        const shown = [...play.logits(model, ran, texts[i].length - {LAST})].map((x) => +x.toFixed(6));
        return [shown, play.loss(model, ran), [...play.next(model, ran)].map((x) => +x.toFixed(7))];
    }}"""
    given = json.dumps([ids[0].tolist() for ids in texts])
    answers = evaluate(engine, f"((texts) => {json.dumps(asked)}.map({one}))({given})")
    for (i, settings), (logits, loss, probabilities) in zip(asked, answers, strict=True):
        small = set_to(model, settings)
        with torch.inference_mode():
            wanted = small(texts[i]).logits[0, -LAST:].float()
        torch.testing.assert_close(torch.tensor(logits).view_as(wanted), wanted, rtol=0, atol=1e-4)
        torch.testing.assert_close(torch.tensor(probabilities), wanted[-1].softmax(0), rtol=0, atol=1e-4)
        nats = lw.evaluation.window_losses(small, texts[i]).item() * (texts[i].shape[1] - 1)
        assert loss == pytest.approx(nats, rel=1e-4)


def test_the_turn_of_the_stream_is_lim(any_engine, evaluate, model, texts):
    given = json.dumps([ids[0].tolist() for ids in texts])
    found = evaluate(any_engine, f"{given}.map((ids) => play.run(model, ids, {json.dumps(DENSE)}).cosines)")
    for cosines, ids in zip(found, texts, strict=True):
        np.testing.assert_allclose(-np.array(cosines), lw.scores.lim(model, ids), atol=1e-5)


def test_what_a_run_before_knows_changes_nothing(any_engine, evaluate, texts):
    ids = texts[0][0].tolist()
    one = f"""([before, settings]) => [undefined, play.run(model, {ids}, before)].map((given) => {{
        const {{ streams, cosines }} = play.run(model, {ids}, settings, given);
        return [streams.length, [...streams.at(-1)], cosines];
    }})"""
    pairs = [(before, settings) for before in CASES for settings in (CASES[0], CASES[3], CASES[-1])]
    for anew, reused in evaluate(any_engine, f"{json.dumps(pairs)}.map({one})"):
        assert anew == reused


@pytest.mark.parametrize("columns", [128, 100])
def test_rounding_is_the_librarys(any_engine, evaluate, columns):
    """Of all sizes and signs, groups of zeros, ranges that float16 can't hold, ties, a last group that is short."""
    weight = torch.randn(12, columns, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    weight[0], weight[1, :64], weight[2], weight[3] = 0, 0, weight[2].abs() + 1, -weight[3].abs() - 1
    weight[4:6] *= 1e-6
    weight[6] *= 1e-9
    weight[7] *= 1000
    weight[8] = torch.arange(columns) % 31 / 2  # a step of 1/2 at 5 bits, of 1 at 4, where halves are ties
    given = json.dumps(weight.flatten().tolist())
    rounded = "[...play.rounded({ shape, values: Float64Array.from(values) }, bits, playData.config.group).values]"
    inner = f"[8, 5, 4, 3, 2].map((bits) => {rounded})"
    found = evaluate(any_engine, f"((shape, values) => {inner})({list(weight.shape)}, {given})")
    for bits, values in zip((8, 5, 4, 3, 2), found, strict=True):
        assert torch.equal(torch.tensor(values).view_as(weight), dequantized(RTN().matrix(weight, bits))), bits


ODD = [
    "", " ", "   ", "\n\t \n", " two  blanks  ", "tr\u00e4umen \u00dcber stra\u00dfe", "日本語 テキスト", "🙂👍🏽 x",
    "½ ² Ⅷ ٣ 7", "don't we'll I'm you've 'sound'", "<|endoftext|>", "a<|endoftext|> b<|endoftext|><|endoftext|>c",
    "<|endoftext", "a\u0085b", "\ufeffx", "\u00a0 x\u2003y", "x" * 300, "12345 26 + 19 = 45.", "A1b2 3c", "-- ... !?",
    "e\u0301 \u200b z", "\x00\x7f\xad",
]  # fmt: skip


def test_tokens_are_those_of_the_tokenizer(engine, evaluate, tokenizer):
    held_out = [text for kind in (*KINDS, None) for text, _ in islice(data.documents("test", 1, kind), 60)]
    every = ODD + held_out + [text[i % 7 : -1 - i % 5] for i, text in enumerate(held_out)]
    found = evaluate(engine, f"{json.dumps(every)}.map(tokenizer.encode)")
    for text, ids in zip(every, found, strict=True):
        assert ids == tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], text
    pieces = evaluate(engine, "playData.tokenizer.vocabulary.map((_, id) => tokenizer.piece(id))")
    decode = tokenizer.backend_tokenizer.decode
    assert pieces == [decode([i], skip_special_tokens=False) for i in range(len(tokenizer))]


# What is written for the page.


def test_the_weights_are_those_of_the_model(model):
    names, numbers = play.weights()
    every = torch.frombuffer(bytearray(numbers), dtype=torch.bfloat16).float()
    parts = every.split([torch.Size(shape).numel() for _, shape in names])
    found = {name: part.view(shape) for (name, shape), part in zip(names, parts, strict=True)}
    wanted = model.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_weights_of_another_precision_are_refused(tmp_path, monkeypatch):
    tensors = load_file(play.WEIGHTS / play.NAME / "model.safetensors")
    (tmp_path / play.NAME).mkdir()
    save_file({name: tensor.float() for name, tensor in tensors.items()}, tmp_path / play.NAME / "model.safetensors")
    monkeypatch.setattr(play, "WEIGHTS", tmp_path)
    with pytest.raises(ValueError, match=r"float32, and the page reads bfloat16"):
        play.weights()


def test_beginnings_are_held_out_texts_without_their_last_word():
    texts = {one["text"] for one in play.held_out()}
    assert [one["kind"] for one in play.beginnings()] == list(KINDS)
    for one in play.beginnings():
        (whole,) = (text for text in texts if text.startswith(one["text"]))
        assert re.fullmatch(rf" {one['word']}\W*", whole.removeprefix(one["text"]))
    words = set(play.known_words())
    assert {"apple", "geometry", "Vera"} < words and not words & {"hello", "Einstein"}


def test_the_staged_book_has_what_the_page_loads_and_the_repository_has_not(tmp_path, scripts):
    (tmp_path / "book").mkdir()
    for name in ("_config.yml", "_toc.yml", "book/play.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    folder = build.stage(tmp_path, {}) / "book" / "_static"
    assert {path.name: path.read_text() for path in folder.iterdir()} == scripts
    assert 4e6 < len(scripts[play.WEIGHTS_SCRIPT.name]) < 8e6 and len(scripts[play.SCRIPT.name]) < 150_000
    named = set(re.findall(r'"\.\./_static/(play[^"]*)"', PAGE))
    assert named - scripts.keys() == {path.name for path in STATIC.glob("play*")} and scripts.keys() < named
    # With the page come only scripts that are light.
    assert play.WEIGHTS_SCRIPT.name not in re.findall(r'src="\.\./_static/([^"]+)"', PAGE)


# The page itself.

ACTING = """
const at = (name) => document.getElementById(`play-${name}`);
const wait = (ready) => new Promise((go) => {
  const look = setInterval(() => ready() && (clearInterval(look), go()), 20);
});
const found = {};
const note = (name, ...parts) => (found[name] = parts.map((part) => at(part).innerText).join(" | "));
const shown = (name) => getComputedStyle(at(name)).display !== "none";
const type = async (text) => {
  at("text").value = text;
  at("text").dispatchEvent(new Event("input"));
  await new Promise((go) => setTimeout(go, 200));
};
const click = (selector) => document.querySelector(selector).click();
const settled = () => wait(() => at("loss").textContent && !at("loss").classList.contains("old"));
const nameless = () => [...document.querySelectorAll("input, select, textarea, button, progress")]
  .filter((each) => !(each.ariaLabel || each.labels?.length || each.textContent.trim())).map((each) => each.outerHTML);
addEventListener("load", async () => {
  try {
    found.before = [at("load").textContent, shown("loaded")];
    click("#play-load");
    await wait(() => shown("loaded"));
    await settled();
    %s
  } catch (error) {
    found.error = `${error}`;
  }
  document.getElementById("found").textContent = JSON.stringify(found);
});
"""


@pytest.fixture
def act(tmp_path, scripts):
    """What some JavaScript, acting on the page once the model is there, has noted."""
    if not CHROMIUM:
        pytest.skip("chromium isn't installed")

    def acted(do, without=()):
        (tmp_path / "_static").mkdir()
        for name, text in scripts.items():
            if name not in without:
                (tmp_path / "_static" / name).write_text(text)
        body = re.search(r"```\{raw\} html\n(.*?)```", PAGE, re.DOTALL)[1]
        dom = browse(tmp_path, f"{body}<pre id='found'></pre><script>{ACTING % do}</script>", milliseconds=60_000)
        found = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)[1]
        return json.loads(html.unescape(found)) if found else dom

    return acted


def numbers(text):
    return [float(number.replace("−", "-")) for number in re.findall(r"[-−+]?\d+\.\d+", text)]


@pytest.fixture(scope="module")
def held_out(tokenizer):
    return [torch.tensor([tokenizer(one["text"])["input_ids"]]) for one in play.held_out()]


def loss_of(model, held_out):
    counts = np.array([ids.shape[1] - 1 for ids in held_out])
    return np.average([lw.evaluation.window_losses(model, ids).item() for ids in held_out], weights=counts)


def test_a_click_loads_the_model_and_what_is_changed_shows(act, model, held_out):
    found = act("""
    note("first", "said", "loss", "next");
    found.nameless = nameless();
    await type("Now Mina had the");
    note("typed", "said");
    found.pick = at("pick").value;
    click("#play-block-5 input[value='off']");
    found.turns = [shown("turn-0")];
    click("#play-skip");
    found.turns.push(shown("turn-0"));
    await settled();
    document.querySelector("#play details").open = true;
    note("off", "said", "loss", "turn-5", "turn-0");
    note("kinds", "kinds");
    found.told = [];
    new MutationObserver(() => found.told.push(at("loss").innerText)).observe(at("loss"), { childList: true });
    click("[aria-label='All blocks: 3 bits']");
    click("[aria-label='All blocks: 2 bits']"); // which overtakes the one before
    await settled();
    note("bits", "loss");
    click("[aria-label='All blocks: dense']");
    await settled();
    note("again", "said", "loss");
    """)
    assert "error" not in found and found["before"] == ["Load the model, 4.8 MB", False]
    assert "Likeliest next: “apple”" in found["first"] and "goes on with “apple”" in found["first"]
    assert found["nameless"] == [] and found["pick"] == "own" and found["turns"] == [False, True]
    assert found["typed"] != found["first"].split(" | ")[0] and "dense model" not in found["typed"]
    dense = loss_of(model, held_out)
    for name, settings in [("first", DENSE), ("off", CASES[3]), ("bits", CASES[7]), ("again", DENSE)]:
        said = next(part for part in found[name].split(" | ") if part.startswith("Loss on 12"))
        loss = loss_of(set_to(model, settings), held_out)
        np.testing.assert_allclose(numbers(said), [loss, dense, loss - dense], atol=0.011)
    assert found["told"] == [found["bits"], found["again"].split(" | ")[1]]
    assert "The dense model says" in found["off"] and "| off |" in found["off"] and "turn 0." in found["off"]
    assert found["again"].split(" | ")[0] == found["typed"]
    for kind, own in zip(KINDS, zip(held_out[::2], held_out[1::2], strict=True), strict=True):
        before, after = loss_of(model, own), loss_of(set_to(model, CASES[3]), own)
        (row,) = re.findall(rf"{kind}(.*)", found["kinds"])
        np.testing.assert_allclose(numbers(row), [before, after, after - before], atol=0.011)


def test_a_guess_is_held_against_what_each_block_costs(act, model, held_out):
    found = act("""
    click("#play-check");
    note("none", "verdict");
    click("#play-most input[value='3']");
    click("#play-least input[value='2']");
    click("#play-check");
    await wait(() => shown("damage"));
    note("verdict", "verdict", "damage");
    """)
    assert found["none"] == "Choose a block in both lines first."
    dense = loss_of(model, held_out)
    lost = [loss_of(set_to(model, DENSE[:i] + ["off"] + DENSE[i + 1 :]), held_out) - dense for i in range(6)]
    tokens = [ids.shape[1] for ids in held_out]
    lim = np.average([lw.scores.lim(model, ids) for ids in held_out], axis=0, weights=tokens)
    shown = np.array(numbers(found["verdict"].split(" | ")[1])).reshape(6, 2)
    np.testing.assert_allclose(shown, np.transpose([lost, lim]), atol=0.0051)
    mark = {True: "✓ right", False: "✗ no"}
    for what, best, mine, its in [
        ("most", np.argmax(lost), 3, np.argmax(lim)), ("least", np.argmin(lost), 2, np.argmin(lim)),
    ]:  # fmt: skip
        told = (
            f"Missed {what}: block {best}. You said {mine}: {mark[mine == best]}. LIM says {its}: {mark[its == best]}."
        )
        assert told in found["verdict"]


def test_text_can_be_odd_and_goes_on_by_a_click(act, model, tokenizer):
    long = "Vera was in the cellar. " * 60 + "Now Vera"
    do = """
    await type("");
    note("empty", "note", "said");
    await type("%s");
    note("long", "note", "said");
    await type("Hello Vera, 日本 ate the app");
    note("strange", "note");
    at("pick").value = 1;
    at("pick").dispatchEvent(new Event("input"));
    const before = at("text").value;
    click("#play-next button");
    found.clicked = at("text").value.slice(before.length);
    click("#play-finish");
    await wait(() => !at("finish").disabled);
    found.finished = at("text").value.slice(before.length);
    """
    found = act(do % long)
    assert "error" not in found
    assert "Nothing typed" in found["empty"] and "Likeliest next" in found["empty"]
    assert "reads the last 255 tokens" in found["long"] and "Not words" not in found["long"]
    ids = tokenizer(long, add_special_tokens=False, verbose=False)["input_ids"]
    assert f"not the {len(ids) - 255} before them" in found["long"]
    with torch.inference_mode():
        most = model(torch.tensor([[0, *ids[-255:]]])).logits[0, -1].softmax(0).max(0)
    said = f"“{tokenizer.decode([most.indices]).strip()}”, {100 * most.values:.0f} %"
    assert said in found["long"]
    assert "Not words of its world: Hello, 日本." in found["strange"]
    assert found["clicked"] == " apple" and re.fullmatch(r" apple\.", found["finished"])


def test_without_the_weights_the_page_says_so(tmp_path, act):
    dom = act("", without=[play.WEIGHTS_SCRIPT.name])
    assert "couldn't be loaded" in re.search(r'id="play-state"[^>]*>(.*?)</p>', dom)[1]


def test_the_page_asks_no_other_host_and_says_what_it_needs():
    for file in (ROOT / "book" / "play.md", *STATIC.glob("play*")):
        assert "://" not in file.read_text(), file
    assert "JavaScript" in re.search(r"<noscript>(.*?)</noscript>", PAGE)[1]
    tracked = subprocess.run(["git", "ls-files", "book"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert play.WEIGHTS_SCRIPT.name not in tracked
