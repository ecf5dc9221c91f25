"""Models of the Hub, downloaded from a stand-in for it by the real client."""

import json
import sys
import types

import huggingface_hub
import layerwise as lw
import numpy as np
import pytest
import torch
from families import FAMILIES, random_tokens, tiny
from layerwise import models, results, world
from layerwise.backbone.structure import UnknownStructure
from layerwise.text import hub
from standin_hub import COMMIT


@pytest.fixture
def served(standin, tmp_path):
    """The stand-in with one model, `org/tiny`."""
    lw.save(tiny(), tmp_path / "tiny", tokenizer=world.tokenizer())
    standin.repos["org/tiny"] = tmp_path / "tiny"
    return standin


def fetched(standin):
    return [path.rpartition("/")[2] for path in standin.asked if path.startswith("GET") and "/resolve/" in path]


def test_a_model_is_downloaded_once_and_known_by_its_commit(served):
    model, tokenizer = lw.load("org/tiny", device="cpu")
    assert torch.equal(model(random_tokens()).logits, tiny()(random_tokens()).logits)
    assert tokenizer("1 + 2")["input_ids"] == world.tokenizer()("1 + 2")["input_ids"]
    assert results.fingerprint(model) == COMMIT
    before = fetched(served)
    assert "model.safetensors" in before
    lw.load("org/tiny", device="cpu", revision="v1")
    lw.load("org/tiny", device="cpu", revision=COMMIT)
    assert fetched(served) == before


def test_only_what_the_model_needs_is_fetched(served):
    for name in ("consolidated.safetensors", "pytorch_model.bin", "original.pth", "run_me.py"):
        (served.repos["org/tiny"] / name).write_bytes(b"large")
    lw.load("org/tiny", device="cpu")
    assert set(fetched(served)) <= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
                                    "tokenizer_config.json", "special_tokens_map.json"}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_goes_from_the_hub_through_everything(family, served, tmp_path):
    model = tiny(family).to(torch.float16)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert (tmp_path / "sharded" / hub.INDEX).exists()
    served.repos["org/sharded"] = tmp_path / "sharded"
    loaded, tokenizer = lw.load("org/sharded", device="cpu")
    assert tokenizer is None and loaded.dtype == loaded.stored_dtype == torch.float16
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())

    loaded, tokens = loaded.float(), random_tokens(8)
    importance, shape = lw.scores.lim(loaded, tokens), lw.shape(loaded)
    plan = lw.plans.drop(shape, importance, 1) | lw.plans.dynamic_slices(shape, importance, 0.25, 0.1)
    plan |= lw.plans.bits(shape, importance, 2, 8, 4)
    small = lw.compress(loaded, plan, tokens)
    assert np.isfinite(lw.compare(small, loaded, tokens).loss) and lw.size(small).bytes < lw.size(loaded).bytes
    again, _ = lw.load(lw.save(small, tmp_path / "small"), device="cpu")
    assert torch.equal(again(tokens).logits, small(tokens).logits)


def test_packed_models_are_downloaded_too(served, tmp_path):
    small = lw.compress(tiny(), lw.plans.bits(lw.shape(tiny()), [0, 1, 2], 2, 8, 4), quantizer="rtn")
    served.repos["org/packed"] = lw.save(small, tmp_path / "packed")
    again, _ = lw.load("org/packed", device="cpu")
    assert torch.equal(again(random_tokens()).logits, small(random_tokens()).logits)


def test_unsupported_models_are_refused_before_their_weights_are_fetched(served):
    config = served.repos["org/tiny"] / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "t5"}))
    with pytest.raises(UnknownStructure, match="'t5' is no language model"):
        lw.load("org/tiny")
    assert fetched(served) == ["config.json"]


def test_a_plan_of_another_model_is_refused_before_weights_are_fetched(served, tmp_path):
    plan = lw.plans.bits(lw.shape(tiny(num_hidden_layers=4)), [0, 1, 2, 3], 2, 8, 4)
    with pytest.raises(ValueError, match="the plan is for 4 layers"):
        lw.compress_checkpoint("org/tiny", tmp_path / "small", plan)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("water the plants")
    with pytest.raises(ValueError, match="is not a model: choose another folder"):
        lw.compress_checkpoint("org/tiny", tmp_path / "notes", lw.plans.drop(lw.shape(tiny()), [0, 1, 2], 1))
    assert fetched(served) == ["config.json"]


def test_a_gated_model_says_where_the_licence_is_and_how_to_give_a_token(served, monkeypatch):
    served.gated.add("org/tiny")
    with pytest.raises(hub.HubError) as told:
        lw.load("org/tiny")
    assert f"{served.url}/org/tiny" in str(told.value) and "no token was given" in str(told.value)
    assert "secret HF_TOKEN" in str(told.value) and "environment variable HF_TOKEN" in str(told.value)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(hub.HubError, match="your token's account has not accepted its licence"):
        lw.load("org/tiny")
    monkeypatch.setenv("HF_TOKEN", "hf_mistyped")
    with pytest.raises(hub.HubError, match="the Hub doesn't know the token that was sent"):
        lw.load("org/tiny")
    monkeypatch.setenv("HF_TOKEN", "hf_accepted")
    assert lw.load("org/tiny", device="cpu")[0].config.num_hidden_layers == 3


def test_colabs_secret_comes_before_the_environment(monkeypatch):
    secrets = {"HF_TOKEN": "hf_secret"}
    google, colab = types.ModuleType("google"), types.ModuleType("google.colab")
    colab.userdata = types.SimpleNamespace(get=secrets.__getitem__)  # Colab raises for what isn't there
    monkeypatch.setitem(sys.modules, "google", google)
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setenv("HF_TOKEN", "hf_environment")
    assert hub.token() == "hf_secret"
    secrets.clear()
    assert hub.token() == "hf_environment"
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert hub.token() is None


def test_a_name_and_a_revision_that_are_not_there(served):
    with pytest.raises(models.UnknownModel, match=r"the Hub has no model 'org/other'.*token.*Embedded models"):
        lw.load("org/other")
    with pytest.raises(hub.HubError, match="org/tiny has no revision 'v2'"):
        lw.load("org/tiny", revision="v2")


def test_a_hub_that_refuses_is_quoted(served):
    served.busy = True
    with pytest.raises(hub.HubError, match="the Hub refused org/tiny: .*429"):
        lw.load("org/tiny")


@pytest.mark.parametrize("name", ["my model", "org/my--model"])
def test_what_can_be_no_name_is_an_unknown_model(name, served):
    with pytest.raises(models.UnknownModel, match="can't be the name of a model on the Hub.*Embedded models"):
        lw.load(name)


def test_a_configuration_that_is_none(served):
    (served.repos["org/tiny"] / "config.json").write_text("{")
    with pytest.raises(hub.HubError, match="^config.json as the Hub has it is no JSON"):
        lw.load("org/tiny")


def test_a_model_of_pickles_is_refused(served):
    (served.repos["org/tiny"] / "model.safetensors").rename(served.repos["org/tiny"] / "pytorch_model.bin")
    with pytest.raises(hub.HubError, match="model.safetensors is not there.*pickled weights are not read"):
        lw.load("org/tiny")


def test_without_a_network_the_cache_is_taken_and_what_is_in_it_is_named(served, waits):
    lw.load("org/tiny", device="cpu")
    served.point_at("http://127.0.0.1:9")  # where nobody answers
    model, tokenizer = lw.load("org/tiny", device="cpu")
    assert tokenizer is not None and results.fingerprint(model) == COMMIT
    assert not waits, "for a Hub that isn't needed"
    with pytest.raises(hub.Unreachable) as told:
        lw.load("org/other")
    assert "can't be reached" in str(told.value) and "org/tiny" in str(told.value) and "embedded/6L" in str(told.value)
    with pytest.raises(hub.Unreachable, match="revision v1 of org/tiny is not in the cache"):
        lw.load("org/tiny", revision="v1")


def test_after_an_interrupted_download_whole_files_are_not_fetched_again(served, tmp_path):
    tiny().save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    served.repos["org/sharded"] = tmp_path / "sharded"
    first, *_, last = sorted(path.name for path in (tmp_path / "sharded").glob("*.safetensors"))
    served.breaks, served.breaks_left = last, 100
    with pytest.raises(hub.HubError, match="broke off.*Run it again"):
        lw.load("org/sharded", device="cpu")
    assert first in fetched(served)
    served.asked.clear()
    served.breaks_left = 1  # one more, after which the client tries again by itself
    model, _ = lw.load("org/sharded", device="cpu")
    assert torch.equal(model(random_tokens()).logits, tiny()(random_tokens()).logits)
    assert first not in fetched(served) and fetched(served).count(last) == 2
