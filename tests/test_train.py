"""Training: it learns, a kill costs nothing but time, and what is exported is a plain Hugging Face folder."""

import json
import multiprocessing
import os
import re
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from layerwise.world import recipes, rows, train
from layerwise.world.tokens import FOLDER as TOKENIZER
from torch import distributed
from transformers import AutoModelForCausalLM, AutoTokenizer

LENGTH = 32
TINY = recipes.Recipe(
    "tiny",
    layers=2,
    width=64,
    intermediate=96,
    tokens=8 * LENGTH * 40,
    batch=8,
    length=LENGTH,
    learning_rate=1e-2,
    warmup=5,
    log_every=5,
    test_every=20,
    test_rows=16,
)


def tiny(folder, recipe=TINY, **options):
    return train.train(recipe, folder, compiled=False, **options)


def weights(run):
    return torch.cat([weight.detach().flatten() for weight in run.masters.values()])


def started(function, *args, daemon=True, **kwargs):
    # A forked process has everything imported already, but torch computes no gradients in it where there is a GPU.
    method = "spawn" if torch.accelerator.is_available() else "fork"
    process = multiprocessing.get_context(method).Process(target=function, args=args, kwargs=kwargs, daemon=daemon)
    process.start()
    return process


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    torch.set_num_threads(1)
    return tiny(tmp_path_factory.mktemp("whole"))


def test_loss_falls_and_the_log_tells(whole):
    log = pd.read_csv(whole.folder / "loss.csv")
    assert log["step"].tolist() == list(range(5, 41, 5))
    assert log["tokens"].iloc[-1] == TINY.tokens
    assert log["loss"].iloc[0] > np.log(2048) - 1.5
    assert log["loss"].iloc[-1] < log["loss"].iloc[0] - 1
    assert log.loc[log["test_loss"].notna(), "step"].tolist() == [20, 40]
    assert (log["test_loss"].dropna() > log["test_floor"].dropna()).all()


def test_the_logged_test_loss_is_that_of_transformers(whole):
    tokens = torch.from_numpy(rows("test", TINY.test_rows, LENGTH)[0].astype("int64"))
    with torch.no_grad():
        expected = whole.model(tokens, labels=tokens).loss.item()
    assert whole.log[-1]["test_loss"] == pytest.approx(expected, abs=1e-3)


def test_explicit_attention_is_attention():
    model = recipes.build_model(replace(TINY, layers=3), seed=1)
    tokens = torch.randint(0, 2048, (2, LENGTH))
    with torch.no_grad():
        ours = model(tokens).logits
        model.set_attn_implementation("eager")
        theirs = model(tokens).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_micro_batches_sum_to_the_batch(tmp_path):
    runs = [train.Run(TINY, 0, tmp_path / str(i), compiled=False) for i in range(2)]
    runs[0].rows_at_once, runs[1].rows_at_once = 2, 8
    for run in runs:
        run.train_step()
    parts, full = (run.sums for run in runs)
    assert parts[0] == pytest.approx(full[0], rel=1e-4)
    assert parts[2] == pytest.approx(full[2], rel=1e-2)


def test_cpus_that_only_emulate_bfloat16_compute_in_float32(monkeypatch, tmp_path):
    runs = {}
    for name in ("emulated", "amx_bf16", "avx512_bf16"):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda name=name: name == "amx_bf16")
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda name=name: name == "avx512_bf16")
        runs[name] = tiny(tmp_path / name, steps=10)
    dtypes = {name: run.model.dtype for name, run in runs.items()}
    assert dtypes == {"emulated": torch.float32, "amx_bf16": torch.bfloat16, "avx512_bf16": torch.bfloat16}
    losses = {name: [line["loss"] for line in run.log] for name, run in runs.items()}
    assert losses["emulated"] != losses["amx_bf16"]
    assert losses["emulated"] == pytest.approx(losses["amx_bf16"], abs=0.02)
    for weight, master in zip(runs["emulated"].model.parameters(), runs["emulated"].masters.values(), strict=True):
        assert torch.equal(weight, master.bfloat16().float())  # the loss is of the weights that would be shipped
    runs["emulated"].export(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "training.json").read_text())["products"] == "float32"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto").dtype == torch.bfloat16
    again = tiny(tmp_path / "emulated", steps=15)  # goes on where float32 left it
    assert again.model.dtype == torch.bfloat16 and [line["step"] for line in again.log] == [5, 10, 15]


def test_schedule_is_warmup_stable_decay():
    rates = [recipes.learning_rate(TINY, step) for step in range(TINY.steps)]
    assert rates[0] == TINY.learning_rate / 5
    assert rates[5 : TINY.decay_start] == [TINY.learning_rate] * (TINY.decay_start - 5)
    assert TINY.decay_start == 32
    falls = np.diff(rates[TINY.decay_start :])
    assert (falls < 0).all() and rates[-1] == pytest.approx(TINY.learning_rate / 8)


def test_a_killed_run_resumes_to_the_same_weights(whole, tmp_path):
    process = started(tiny, tmp_path, save_every=0.0)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("checkpoint-*.safetensors"))) < 2 and process.is_alive():
        assert time.monotonic() < deadline, "no checkpoint was written within a minute"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    run = train.Run(TINY, 0, tmp_path, compiled=False)
    assert 0 < run.step < TINY.steps, "killed too late for the test to mean anything"
    resumed = tiny(tmp_path)
    assert torch.equal(weights(resumed), weights(whole))
    assert [line["loss"] for line in resumed.log] == [line["loss"] for line in whole.log]


def ended(processes):
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def shared(rank, folder, last):
    """One of two processes of a run, each with a folder of its own; only the second is told to stop, after `last`."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting{last}", rank=rank, world_size=2)
    before = iter(range(last + 1))
    run = tiny(folder / f"run{rank}", stop=lambda: next(before) == last and rank == 1)
    distributed.destroy_process_group()
    assert run.step == last


def test_processes_share_a_run_stop_together_and_go_on_to_the_same_weights(whole, tmp_path):
    for last in (20, TINY.steps):
        assert ended([started(shared, rank, tmp_path, last) for rank in range(2)]) == [0, 0]
    run = train.Run(TINY, 0, tmp_path / "run0", compiled=False)
    assert [(start["step"], start["processes"]) for start in run.starts] == [(0, 2), (20, 2), (40, 1)]
    # each has one of the two parts that a single process adds up
    assert torch.equal(weights(run), weights(whole))
    assert not (tmp_path / "run1").exists()


SIXTEEN = replace(TINY, batch=16, tokens=2 * TINY.tokens)


def launched(recipe, rank, processes, port, folder, pipe=None):
    """`main`, as torchrun would start it; it holds the `pipe` open while it lives."""
    (folder / str(rank)).mkdir()
    os.chdir(folder / str(rank))
    os.environ |= {"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    recipes.RECIPES["tiny"] = recipe
    raise SystemExit(train.main(["tiny", "--eager"]))


@pytest.fixture
def store():
    """Where processes meet; torchrun has one."""
    return distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)


def test_the_command_trains_in_processes(store, tmp_path):
    assert ended([started(launched, SIXTEEN, rank, 2, store.port, tmp_path) for rank in range(2)]) == [0, 0]
    assert not list((tmp_path / "1").iterdir())
    exported = tmp_path / "0" / "training" / "tiny-s0" / "model"
    facts = json.loads((exported / "training.json").read_text())
    assert facts["processes"] == 2
    assert facts["command"].startswith("torchrun --standalone --nproc-per-node 2 -m layerwise.world.train tiny ")
    together, alone = pd.read_csv(exported / "loss.csv"), tiny(tmp_path / "alone", SIXTEEN)
    alone = pd.DataFrame(alone.log)
    for column, rel in {"loss": 1e-3, "gradient_norm": 1e-2}.items():
        np.testing.assert_allclose(together[column][:3], alone[column][:3], rtol=rel)


def launcher(port, folder, pipe):
    """A torchrun of one process."""
    started(launched, replace(TINY, tokens=50 * TINY.tokens), 0, 1, port, folder, pipe).join()


def test_a_training_ends_with_the_torchrun_that_began_it(store, tmp_path):
    ours, theirs = multiprocessing.Pipe()
    torchrun = started(launcher, store.port, tmp_path, theirs, daemon=False)
    theirs.close()
    deadline = time.monotonic() + 60
    while not store.num_keys() and torchrun.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    began = store.num_keys() and not ours.poll()  # it knows its parent, has joined, and lives
    torchrun.kill()
    assert began
    assert ours.poll(60)
    assert not list(tmp_path.glob("0/training/*/model"))


def test_what_several_processes_cannot_do_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    with pytest.raises(SystemExit):
        train.main(["6L", "--check", "10"])
    assert "--check and --device run in one process" in capsys.readouterr().err
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match="3 processes can't share the 8 rows"):
        train.Run(TINY, 0, tmp_path, compiled=False)


def test_muon_trains_the_matrices_of_blocks_and_resumes_to_the_same_weights(tmp_path):
    recipe = replace(TINY, optimizer="muon")
    whole = tiny(tmp_path / "whole", recipe)
    assert [len(o.param_groups) for o in whole.optimizers] == [2, 1]
    trained = whole.optimizers[1].param_groups[0]["params"]
    assert len(trained) == 2 * 7 and all(weight.ndim == 2 for weight in trained)
    assert whole.log[-1]["loss"] < whole.log[0]["loss"] - 1
    tiny(tmp_path / "parts", recipe, steps=17)
    assert weights(tiny(tmp_path / "parts", recipe)).equal(weights(whole))
    with pytest.raises(ValueError, match="give another folder by --out"):
        tiny(tmp_path / "parts")


def test_stopping_saves_and_says_where(tmp_path):
    answers = iter([False, False, False, True])
    run = tiny(tmp_path, stop=lambda: next(answers))
    assert run.step == 3
    assert train.Run(TINY, 0, tmp_path, compiled=False).step == 3


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_is_taken(tmp_path, damage):
    tiny(tmp_path, steps=3, save_every=0.0)
    first, second = sorted(tmp_path.glob("checkpoint-*.safetensors"))
    content = bytearray(second.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    else:
        content[-1000] ^= 1
    second.write_bytes(content)
    with pytest.warns(UserWarning, match=f"{second.name} is damaged"):
        run = train.Run(TINY, 0, tmp_path, compiled=False)
    assert run.step == 2
    first.write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="every checkpoint .* is damaged"):
        train.Run(TINY, 0, tmp_path, compiled=False)


def test_tokens_may_change_until_the_decay_begins(tmp_path):
    tokens = 8 * LENGTH
    tiny(tmp_path, steps=20)
    with pytest.raises(ValueError, match="give at least") as fault:
        train.Run(replace(TINY, tokens=21 * tokens), 0, tmp_path, compiled=False)
    least = int(str(fault.value).split()[-2].replace(",", ""))
    assert train.Run(replace(TINY, tokens=least), 0, tmp_path, compiled=False).step == 20
    assert tiny(tmp_path, replace(TINY, tokens=50 * tokens), steps=42).step == 42
    with pytest.raises(ValueError, match="only the 12,800 tokens"):
        train.Run(replace(TINY, tokens=80 * tokens), 0, tmp_path, compiled=False)


def test_a_folder_of_another_run_is_refused(whole):
    with pytest.raises(ValueError, match="holds a run of .* seed 0.*--out"):
        train.Run(TINY, 1, whole.folder, compiled=False)
    with pytest.raises(ValueError, match="holds a run of"):
        train.Run(replace(TINY, layers=3), 0, whole.folder, compiled=False)


def test_divergence_is_an_error(tmp_path):
    run = train.Run(TINY, 0, tmp_path, compiled=False)
    with torch.no_grad():
        run.model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="diverged at step 0"):
        run.train_step()


def assert_tokenizer_is_the_world_s(folder):
    """Byte by byte: transformers 5 would write another class name, with which transformers 4 can't read it."""
    for shipped in TOKENIZER.glob("*.json"):
        assert (folder / shipped.name).read_bytes() == shipped.read_bytes(), f"copy {shipped} to {folder}"


@pytest.mark.parametrize("folder", sorted(train.WEIGHTS.glob("*/")), ids=lambda folder: folder.name)
def test_shipped_models_have_the_world_s_tokenizer(folder):
    assert_tokenizer_is_the_world_s(folder)


def test_export_is_a_plain_hugging_face_folder(whole, tmp_path):
    whole.export(tmp_path / "tiny")
    whole.export(tmp_path / "tiny", command="again")  # replaces
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny", dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tiny")
    assert_tokenizer_is_the_world_s(tmp_path / "tiny")
    assert model.dtype == torch.bfloat16 and model.config.model_type == "llama"
    for name, weight in model.named_parameters():
        assert torch.equal(weight, whole.masters[name].to(torch.bfloat16)), name
    assert tokenizer.decode(tokenizer("A test.")["input_ids"], skip_special_tokens=True) == "A test."
    facts = json.loads((tmp_path / "tiny" / "training.json").read_text())
    assert facts["tokens"] == TINY.tokens and facts["seed"] == 0 and facts["command"] == "again"
    assert facts["test_loss"] == whole.log[-1]["test_loss"] and facts["test_floor"] < facts["test_loss"]
    assert {"packages", "threads", "seconds", "recipe"} <= facts.keys() and not {"step", "resumed"} & facts.keys()
    assert "explicit" not in (tmp_path / "tiny" / "config.json").read_text()


def test_the_log_says_what_a_run_was_begun_with_and_what_changed_on_the_way(tmp_path, monkeypatch):
    exact = torch.float32
    for commit, dtype, steps in (("a", torch.bfloat16, 10), ("b", exact, None), ("exports only", exact, None)):
        monkeypatch.setattr("layerwise.world.run.provenance", lambda commit=commit: {"commit": commit})
        monkeypatch.setattr("layerwise.world.run.products", lambda device, dtype=dtype: dtype)
        run = tiny(tmp_path, steps=steps)
    run.export(tmp_path / "model")
    facts = json.loads((tmp_path / "model" / "training.json").read_text())
    assert (facts["commit"], facts["products"]) == ("a", "bfloat16")
    assert facts["resumed"] == [{"step": 10, "products": "float32", "processes": 1, "commit": "b"}]


def test_a_shipped_run_can_be_checked(whole, tmp_path):
    whole.export(tmp_path / "tiny")
    table = train.check_beginning(TINY, tmp_path / "tiny", tmp_path / "again", steps=10, compiled=False)
    assert table["step"].tolist() == [5, 10]
    assert table["difference"].abs().max() < 1e-3
    with pytest.raises(ValueError, match="no longer"):
        train.check_beginning(replace(TINY, learning_rate=1.0), tmp_path / "tiny", tmp_path / "other", compiled=False)


def test_an_unknown_recipe_lists_the_names(capsys):
    with pytest.raises(ValueError, match="'7L'.*6L, 12L, 12L-muon, 24L, 24L-wide"):
        recipes.recipe("7L")
    with pytest.raises(SystemExit):
        train.main(["7L"])
    assert "24L-wide" in capsys.readouterr().err


@pytest.fixture
def command(monkeypatch, tmp_path):
    """`main` in a folder of its own, for the tiny recipe; it leaves this process's signal handlers alone."""
    monkeypatch.setitem(recipes.RECIPES, "tiny", TINY)
    monkeypatch.setattr(train.signal, "signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    return lambda *options: train.main(["tiny", *options])


def test_the_command_trains_and_goes_on_where_it_was(command, capsys):
    tiny(Path("training/tiny-s0"), steps=20)
    assert command("--eager") == 0
    folder, loss = re.search(r"Trained: (\S+), test loss ([\d.]+)", capsys.readouterr().out).groups()
    facts = json.loads((Path(folder) / "training.json").read_text())
    assert facts["tokens"] == TINY.tokens and facts["test_loss"] == pytest.approx(float(loss), abs=1e-4)
    assert facts["command"] == f"python -m layerwise.world.train tiny --tokens {TINY.tokens} --seed 0"


def test_without_a_compiler_the_command_says_what_to_do(command, capsys, monkeypatch):
    def backend(*_):
        raise RuntimeError("No working C++ compiler found")  # as inductor does, which takes long to import

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    with pytest.raises(SystemExit) as end:
        command()
    assert end.value.code == 2
    assert re.search(r"compiler.*\n.*g\+\+; --eager does without\n$", capsys.readouterr().err)


def test_the_family_differs_in_depth_only():
    six, twelve, deep = (recipes.recipe(name) for name in ("6L", "12L", "24L"))
    assert replace(twelve, name="6L", layers=6) == six == replace(deep, name="6L", layers=6)
