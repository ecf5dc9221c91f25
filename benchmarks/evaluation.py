"""Perplexity and comparison over one plain forward pass, on a model with a large vocabulary: `python
benchmarks/evaluation.py`, about five minutes.

packaged/smollm2-135m in bfloat16: its head is a fifth of the multiplications, and the logits of
16 windows of 512 tokens are 0.8 GB. In alternation in one process, 8 windows at a time:

- *forward*: `model(tokens)`, logits of all positions included, which are let go;
- *perplexity*, *compare*: `lw.perplexity`; `lw.compare` with a reference whose logits are kept, and with a model;
- *at once*: the same from the logits of all positions of a batch, a window in float32 at a time, as it was done before;
- *product*: a product of two square matrices, for the rate that operations are done at.

Ratios are medians of those within a round. The floor of a row is its operations (blocks, attention, head) at the rate
of the product; exponentials, of which there are 49,152 for each position, aren't counted.

Peak memory is that of a fresh process: the most that Linux counts as resident while it evaluates, less what is resident
before, when the model is loaded and the reference made. Writes `evaluation.csv` and `evaluation_seconds.csv` to
`results/benchmarks`. Run it on a quiet machine; with `--quick`, on an embedded model, it writes to `_build/benchmarks`.
"""

import argparse
import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import layerwise as lw
import numpy as np
import pandas as pd
import torch
from layerwise import results
from layerwise.backbone.structure import blocks, linears
from layerwise.models import UnknownModel
from torch.nn import functional as F

ROOT = Path(__file__).parent.parent
BATCH = 8
BARS = {("perplexity", "forward"): "<= 1.15", ("compare, kept reference", "forward"): "<= 1.3"}
# What is freed goes back to the system at once, and no thread keeps memory of its own.
ENVIRONMENT = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}


def subject(quick: bool):
    """The model in bfloat16, and tokens `[windows, length]`: random ones, since time doesn't depend on which."""
    if quick:
        model, windows, length = lw.load("embedded/6L", device="cpu")[0].bfloat16(), 4, 128
    else:
        model, windows, length = lw.load("packaged/smollm2-135m", device="cpu")[0], 16, 512
    tokens = torch.randint(model.config.vocab_size, (windows, length), generator=torch.Generator().manual_seed(0))
    return model, tokens


def forward(model, tokens) -> None:
    """What evaluating is compared with."""
    with torch.inference_mode():
        for part in tokens.split(BATCH):
            model(input_ids=part, use_cache=False)


def losses_at_once(model, tokens) -> list[float]:
    """Losses by window, from all logits of a batch."""
    found = []
    with torch.inference_mode():
        for part in tokens.split(BATCH):
            logits = model(input_ids=part, use_cache=False).logits
            found += [F.cross_entropy(p[:-1].float(), t[1:]).item() for p, t in zip(logits, part, strict=True)]
    return found


def divergences_at_once(model, reference, tokens) -> list[float]:
    """KL by window, from all logits of a batch and those of the reference, which are kept."""
    found = []
    with torch.inference_mode():
        for part, kept in zip(tokens.split(BATCH), reference, strict=True):
            logits = model(input_ids=part, use_cache=False).logits
            for pair in zip(logits, kept, strict=True):
                p, q = (F.log_softmax(x[:-1].float(), dim=-1) for x in pair)
                found.append((q.exp() * (q - p)).sum(dim=-1).mean().item())
    return found


def operations(model, length: int) -> int:
    """Multiplications and additions for a window: linear layers of the blocks, causal attention, head."""
    config = model.config
    weights = sum(linear.weight.numel() for block in blocks(model) for linear in linears(block).values())
    attention = 2 * config.num_hidden_layers * length * config.hidden_size
    return length * (2 * weights + attention + 2 * config.vocab_size * config.hidden_size)


def measured(model, tokens, rounds: int, size: int) -> pd.DataFrame:
    """Wall and processor seconds of each way in each round."""
    other = lw.compress(model, lw.plans.bits(lw.shape(model), range(lw.shape(model).L), 1, low=4, high=None))
    reference = lw.Reference(model, tokens)
    with torch.inference_mode():
        kept = [model(input_ids=part, use_cache=False).logits for part in tokens.split(BATCH)]
    a = torch.randn(size, size, dtype=torch.bfloat16)
    ways = {
        "forward": lambda: forward(model, tokens),
        "perplexity": lambda: lw.perplexity(model, tokens, BATCH),
        "perplexity at once": lambda: losses_at_once(model, tokens),
        "compare, kept reference": lambda: lw.compare(other, reference, tokens, BATCH),
        "compare, kept reference, at once": lambda: divergences_at_once(other, kept, tokens),
        "compare, two models": lambda: lw.compare(other, model, tokens, BATCH),
        "product": lambda: a @ a,
    }
    np.testing.assert_allclose(
        np.mean(losses_at_once(model, tokens)), np.log(lw.perplexity(model, tokens).value), atol=1e-3
    )
    np.testing.assert_allclose(
        np.mean(divergences_at_once(other, kept, tokens)), lw.compare(other, reference, tokens).kl, rtol=1e-2
    )
    rows = []
    for number in range(rounds):
        for way, run in ways.items():
            started, used = time.perf_counter(), time.process_time()
            run()
            seconds = {"seconds": time.perf_counter() - started, "processor_seconds": time.process_time() - used}
            rows.append({"round": number, "way": way} | seconds)
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def peak(what: str, quick: bool) -> int:
    """Bytes that evaluating takes in this process."""
    model, tokens = subject(quick)
    reference = lw.Reference(model, tokens) if what == "compare" else None
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    if what == "forward":
        forward(model, tokens)
    elif what == "perplexity":
        lw.perplexity(model, tokens, BATCH)
    else:
        lw.compare(model, reference, tokens, BATCH)
    return _status("VmHWM") - before


def _status(name: str) -> int:
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status[name].split()[0])


def memory(quick: bool) -> list[dict]:
    """Median peaks of three processes each."""

    def once(what):
        command = [sys.executable, __file__, "--peak", what, *["--quick"] * quick]
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
        return int(run.stdout)

    found = {what: np.median([once(what) for _ in range(3)]) / 1e6 for what in ("forward", "perplexity", "compare")}
    bars = {"forward": None, "perplexity": "<= 400", "compare": "<= 400"}
    return [{"quantity": f"peak memory, MB: {what}", "value": mb, "bar": bars[what]} for what, mb in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--quick", action="store_true", help="an embedded model, to see whether the benchmark works")
    parser.add_argument("--peak", choices=["forward", "perplexity", "compare"], help="print only the bytes of this")
    asked = parser.parse_args()
    if asked.peak:
        print(peak(asked.peak, asked.quick))
        return
    options = {"rounds": 1 if asked.quick else 7, "product": 256 if asked.quick else 4096}
    try:
        model, tokens = subject(asked.quick)
    except UnknownModel as error:
        print(f"{error}. Nothing is measured; --quick tries the benchmark out.")
        return
    times = measured(model, tokens, options["rounds"], options["product"])
    wall = times.pivot(index="round", columns="way", values="seconds")
    used = times.pivot(index="round", columns="way", values="processor_seconds")
    rate = 2 * options["product"] ** 3 / wall["product"]
    floor = len(tokens) * operations(model, tokens.shape[1]) / rate
    rows = []
    for way in wall.columns.drop("product"):
        rows.append({"quantity": f"{way}: seconds", "value": wall[way].median()})
        of = {
            "forward": wall["forward"],
            "floor": floor,
            "at once": wall.get(f"{way} at once", wall.get(f"{way}, at once")),
        }
        for other, seconds in of.items():
            if seconds is not None and other != way:
                bar = BARS.get((way, other))
                rows.append({"quantity": f"{way} / {other}", "value": (wall[way] / seconds).median(), "bar": bar})
        ratio = (used[way] / used["forward"]).median()
        rows.append({"quantity": f"{way} / forward, processor seconds", "value": ratio})
    rows.append({"quantity": "rate of the product, teraflop/s", "value": rate.median() / 1e12})
    rows.append({"quantity": "kept reference, MB", "value": lw.Reference(model, tokens).bytes / 1e6})
    summary = pd.DataFrame(rows + memory(asked.quick))
    out = ROOT / ("_build/benchmarks" if asked.quick else "results/benchmarks")
    options |= {"windows": len(tokens), "length": tokens.shape[1], "batch": BATCH, "threads": torch.get_num_threads()}
    for name, table in {"evaluation": summary, "evaluation_seconds": times}.items():
        print(f"\n{name}\n{table.to_string(index=False)}")
        results.save_rows(table, out / f"{name}.csv", command="python benchmarks/evaluation.py", settings=options)


if __name__ == "__main__":
    main()
