"""The packaged models themselves. Where a wheel isn't installed these tests are skipped, but not in `.ci/run`."""

import importlib.metadata
import os
from pathlib import Path

import layerwise as lw
import pytest
import torch
from layerwise.models.wheels import PREFIX, WHEELS
from layerwise.quantization import HQQ
from layerwise.quantization.packed import dequantized

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module", params=WHEELS)
def wheel(request):
    """A wheel, its model in float32, and the model's tokenizer."""
    found = WHEELS[request.param]
    try:
        importlib.metadata.version(found.distribution)
    except importlib.metadata.PackageNotFoundError:
        if os.environ.get("LAYERWISE_WHEELS") == "required":
            raise
        pytest.skip(f"no {found.distribution} here: {found.command}")
    return found, *lw.load(PREFIX + request.param, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def text(wheel, tmp_path_factory):
    """Windows of a text that is in every clone."""
    file = tmp_path_factory.mktemp("text") / "README.txt"
    file.write_text(README.read_text())
    return lw.tokens(wheel[2], str(file), n=4, length=96)


def test_it_answers_in_its_own_format(wheel):
    _, model, tokenizer = wheel
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer) and answer[-1] == tokenizer.eos_token_id


def test_its_tokenizer_keeps_text_and_special_tokens(wheel):
    _, model, tokenizer = wheel
    words = README.read_text() + "\n\n 1984  é 漢字 🙂"
    assert tokenizer.decode(tokenizer(words)["input_ids"]) == words
    for token in tokenizer.all_special_tokens:
        assert len(tokenizer(token, add_special_tokens=False)["input_ids"]) == 1
    assert tokenizer.eos_token_id == model.config.eos_token_id == model.generation_config.eos_token_id
    assert len(tokenizer) == model.config.vocab_size


def test_its_perplexity_is_that_of_transformers_loss(wheel, text):
    _, model, _ = wheel
    with torch.no_grad():
        loss = torch.stack([model(row[None], labels=row[None]).loss for row in text]).mean()
    assert lw.perplexity(model, text).value == pytest.approx(loss.exp().item(), rel=1e-4)


def test_weights_of_the_wheel_lie_on_a_grid_of_4_bits_in_groups_of_32(wheel):
    """What `lw.load` and the book say of it, by HQQ, which finds a grid if there is one."""
    pytest.importorskip("hqq")
    weight = wheel[1].model.layers[3].mlp.up_proj.weight

    def error(group, bits):
        again = dequantized(HQQ(group=group).matrix(weight, bits))
        return ((again - weight).square().mean().sqrt() / weight.square().mean().sqrt()).item()

    assert error(32, bits=4) < 0.005
    assert all(error(group, bits) > 0.05 for group, bits in [(64, 4), (32, 3)])


def test_slicing_makes_it_smaller(wheel, text):
    _, model, _ = wheel
    small = lw.compress(model, lw.plans.constant_slices(lw.shape(model), mean=0.20), text)
    assert lw.size(small).bytes < lw.size(model).bytes


def test_its_fingerprint_tells_version_and_file(wheel):
    found, model, _ = wheel
    assert lw.results.fingerprint(model).startswith(f"{found.distribution} {found.version}, sha256 ")
