"""A sweep over orderings: blocks quantized once and put together, against a model compressed anew for every plan.

`python benchmarks/quantization.py`, about half an hour. Two models: the embedded one of 12 blocks, whose weights are
trained, and a random Llama of 91M parameters, on which passes and matrices cost what they cost on real ones. Four
orderings, k = 0 ... L from 4 to 2 bits, every plan on the same windows of 256 tokens. How much a sweep saves depends on
how many windows there are, since both have to evaluate: eight for the small model, one and two for the larger.
Compared, in alternation in one process:

- *evaluations*: a forward pass and a comparison of logits for each plan, nothing else: what a sweep can't do without
  if its plans share nothing;
- *assembly*: `Assembly(...)`, quantizing included, and `compare` of all plans;
- *anew*: for each plan load the checkpoint, `compress` it in place, one pass and one comparison with the same logits of
  the dense model; measured on some of the plans and multiplied.

Processor seconds, summed over threads, barely notice a busy machine. Writes `quantization.csv` and
`quantization_seconds.csv` to `results/benchmarks`; with `--quick`, of small models, to `_build/benchmarks`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import layerwise as lw
import numpy as np
import pandas as pd
import torch
from layerwise import evaluation, results
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parent.parent
QUANTIZERS = ("rtn", "quanto", "hqq")
HIGH, LOW = 4, 2
# What is freed goes back to the system at once, and no thread keeps memory of its own.
ENVIRONMENT = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}


def random_llama(blocks: int, width: int, vocabulary: int) -> LlamaForCausalLM:
    """A random Llama in float32, with heads of 64 and an MLP of 8/3 of the width."""
    config = LlamaConfig(
        num_hidden_layers=blocks,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 64 * 64,
        num_attention_heads=width // 64,
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def orderings(model, tokens) -> list[np.ndarray]:
    """LIM, ZD, reversed LIM and one random order: importances `[L]`."""
    lim = lw.scores.lim(model, tokens)
    return [lim, lw.scores.zd(model), -lim, np.random.default_rng(0).random(len(lim))]


def plans(model, tokens) -> list[lw.Plan]:
    """Every k of every ordering."""
    shape = lw.shape(model)
    return [
        lw.plans.bits(shape, order, low_layers=k, high=HIGH, low=LOW)
        for order in orderings(model, tokens)
        for k in range(shape.L + 1)
    ]


def evaluations(model, many, tokens):
    """As many passes and comparisons as the sweep has plans, of the dense model with itself."""
    dense = lw.Reference(model, tokens, batch=len(tokens))
    for _ in many:
        evaluation.window_differences(model, dense, tokens, batch=len(tokens))


def assembly(model, many, tokens, quantizer) -> np.ndarray:
    """Loss of each plan, from blocks quantized once."""
    return lw.Assembly(model, (HIGH, LOW), quantizer).compare(many, tokens, batch=len(tokens))[0].mean(1)


def anew(folder, dense, many, tokens, quantizer) -> np.ndarray:
    """Loss of each plan, from a model that is loaded and compressed for it; `dense` is the dense one's reference."""
    found = []
    for plan in many:
        model, _ = lw.load(folder, device="cpu")
        small = lw.compress(model, plan, quantizer=quantizer, inplace=True)
        found.append(evaluation.window_differences(small, dense, tokens, batch=len(tokens))[0].mean())
    return np.array(found)


def clock(run, *args):
    """Wall and processor seconds of a call, and what it returns."""
    started, used = time.perf_counter(), time.process_time()
    value = run(*args)
    return time.perf_counter() - started, time.process_time() - used, value


def share_run(many) -> float:
    """Of the blocks that plans have together, the share that an assembly runs: those that end distinct beginnings."""
    choices = [tuple(layer.bits for layer in plan.layers) for plan in many]
    beginnings = {choice[: i + 1] for choice in choices for i in range(len(choice))}
    return len(beginnings) / sum(map(len, choices))


def compared(name: str, model, tokens, rounds: int, some: int) -> list[dict]:
    """The three ways in alternation, one row per (quantizer, round, way); the losses of the last two must agree."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = lw.save(model, Path(temporary) / "model")
        many = plans(model, tokens)
        dense = lw.Reference(model, tokens, batch=len(tokens))
        chosen = np.linspace(0, len(many) - 1, some).round().astype(int)
        for number in range(rounds):
            for quantizer in QUANTIZERS:
                ways = {
                    "evaluations": (evaluations, model, many, tokens),
                    "assembly": (assembly, model, many, tokens, quantizer),
                    "anew": (anew, folder, dense, [many[i] for i in chosen], tokens, quantizer),
                }
                found = {way: clock(*call) for way, call in ways.items()}
                np.testing.assert_allclose(found["assembly"][2][chosen], found["anew"][2], atol=2e-5)
                for way, (seconds, used, _) in found.items():
                    share = len(many) / len(chosen) if way == "anew" else 1
                    labels = {"model": name, "quantizer": quantizer, "round": number, "way": way, "plans": len(many)}
                    rows.append(labels | {"seconds": seconds * share, "processor_seconds": used * share})
                    print(rows[-1], flush=True)
        rows[-1]["share_run"] = share_run(many)
    return rows


def peak(what: str, options) -> int:
    """Bytes that this process has held at the most, beyond those before the sweep; dense model and tokens left out."""
    model = random_llama(*options.shape)
    tokens = torch.randint(options.shape[2], (options.windows, 256))
    many = plans(model, tokens)
    if what == "sweep":
        assembly(model, many[: len(many) // 4], tokens, "rtn")
    else:
        evaluations(model, many[:1], tokens)
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])


def memory(options, quick: bool) -> list[dict]:
    """Peak of a sweep over two widths beside that of one evaluation, and in copies of the blocks per width."""
    command = [sys.executable, __file__] + ["--quick"] * quick

    def once(what):
        run = subprocess.run([*command, "--peak", what], check=True, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
        return int(run.stdout)

    found = {what: np.median([once(what) for _ in range(3)]) for what in ("evaluation", "sweep")}
    shape = lw.shape(random_llama(*options.shape))
    copies = 2 * 4 * sum(shape.linear_weights)
    states = shape.L * options.windows * 256 * shape.D * 4  # what enters each block, for plans that begin alike
    more = found["sweep"] - found["evaluation"]
    return [
        {"quantity": "peak memory, GB: evaluation", "value": found["evaluation"] / 1e9},
        {"quantity": "peak memory, GB: sweep over two widths", "value": found["sweep"] / 1e9},
        {"quantity": "what the sweep holds more / a copy of the blocks for each width", "value": more / copies},
        {"quantity": "the same without the hidden states that it keeps", "value": (more - states) / copies},
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small model, to see whether the benchmark works")
    parser.add_argument("--peak", choices=["evaluation", "sweep"], help="print the peak memory in bytes of only this")
    asked = parser.parse_args()
    options = argparse.Namespace(shape=(4, 128, 1000) if asked.quick else (12, 768, 8000), windows=2)
    options.rounds, options.some = (1, 3) if asked.quick else (3, 6)
    torch.manual_seed(0)
    if asked.peak:
        print(peak(asked.peak, options))
        return
    trained, tokenizer = lw.load("embedded/6L" if asked.quick else "embedded/12L", device="cpu")
    text = lw.tokens(tokenizer, "world", split="test", n=8, length=256)
    rows = compared("trained, 8 windows", trained, text, options.rounds, options.some)
    if not asked.quick:
        big, tokens = random_llama(*options.shape), torch.randint(options.shape[2], (options.windows, 256))
        rows += compared("random 91M, 1 window", big, tokens[:1], options.rounds, options.some)
        rows += compared(f"random 91M, {options.windows} windows", big, tokens, options.rounds, options.some)
    times = pd.DataFrame(rows)
    summary = []
    for (model, quantizer), part in times.groupby(["model", "quantizer"], sort=False):
        by_way = part.pivot(index="round", columns="way", values="processor_seconds")
        for quantity, ratio, bar in (
            ("sweep / its evaluations", by_way["assembly"] / by_way["evaluations"], "<= 1.3"),
            ("loading and quantizing anew / sweep", by_way["anew"] / by_way["assembly"], ">= 5"),
        ):
            summary.append({"quantity": f"{model}, {quantizer}: {quantity}", "value": ratio.median(), "bar": bar})
    summary = pd.DataFrame(summary + memory(options, asked.quick))
    out = ROOT / ("_build/benchmarks" if asked.quick else "results/benchmarks")
    for name, table in {"quantization": summary, "quantization_seconds": times}.items():
        print(f"\n{name}\n{table.to_string(index=False)}")
        results.save_rows(
            table, out / f"{name}.csv", command="python benchmarks/quantization.py", settings=vars(options)
        )


if __name__ == "__main__":
    main()
