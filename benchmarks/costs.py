"""What it takes to predict the costs of widths, over one pass forward and back: `python benchmarks/costs.py [MODEL]`.

Eight windows of calibration text, one at a time, on packaged/smollm2-135m unless another model is named. In alternation
in one process: a plain pass forward and back, which gives the gradient of every weight; `lw.costs.fisher`;
`lw.costs.predicted`, which `lw.fit` goes by; `output_error`, ModelOpt's; `relative_error`, which reads no text. What
rounding itself takes is among all of these but the first. One `lw.costs.measured` is timed on a few of the parts and
scaled to all, since it takes hundreds of passes.

Peak memory is that of a fresh process, the most that Linux counts as resident while it works, less what is resident
before; beside it stand the bytes of the model, and of the gradient of its largest block in float32. Writes `costs.csv`
to `results/benchmarks`; with `--quick`, on an embedded model, to `_build/benchmarks`.
"""

import argparse
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
from layerwise.costs.measured import measured_by_window
from layerwise.quantization import RTN
from torch.nn import functional as F

ROOT = Path(__file__).parent.parent
WIDTHS = (2, 3, 4, 5, 6, 8)
ROUNDS, WINDOWS, SAMPLE = 3, 8, 12
BARS = {"predicted": "<= 4", "fisher": "<= 4"}
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "65536")
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "65536")


def text(model, tokenizer) -> torch.Tensor:
    """Windows of the text that the project ships: what they say doesn't matter to time."""
    return lw.tokens(tokenizer, "world", n=WINDOWS, length=512 if lw.shape(model).D > 256 else 256)


def forward_and_back(model, tokens) -> None:
    """The gradient of the loss by every weight, window by window."""
    model.requires_grad_(True)
    for window in tokens:
        logits = model(input_ids=window[None], use_cache=False).logits[0].float()
        F.cross_entropy(logits[:-1], window[1:]).backward()
        model.zero_grad(set_to_none=True)
    model.requires_grad_(False)


def ways(model, tokens) -> dict:
    """What is timed, by name."""
    settings = (model, tokens, RTN(), WIDTHS)
    return {
        "forward and back": lambda: forward_and_back(model, tokens),
        "fisher": lambda: lw.costs.fisher(*settings),
        "predicted": lambda: lw.costs.predicted(*settings),
        "output error": lambda: lw.costs.output_error(*settings),
        "relative error": lambda: lw.costs.relative_error(*settings),
    }


def resident() -> int:
    """Bytes that the process has in memory, now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak(name: str, way: str) -> None:
    """Print the bytes that a way takes at its peak beyond the model, in this process, which does nothing else."""
    model, tokenizer = lw.load(name)
    tokens = text(model, tokenizer)
    run, before = ways(model, tokens)[way], resident()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    run()
    high = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(high.split()[1]) * 1024 - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", default="packaged/smollm2-135m")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    name = "embedded/6L" if options.quick else options.model
    if options.peak:
        peak(name, options.peak)
        return
    model, tokenizer = lw.load(name)
    tokens, shape, seconds = text(model, tokenizer), lw.shape(model), []
    for turn in range(ROUNDS):
        for way, run in ways(model, tokens).items():
            start = time.process_time()
            run()
            seconds.append({"round": turn, "way": way, "seconds": time.process_time() - start})
            print(seconds[-1], flush=True)
    parts = np.linspace(0, len(shape.parts) - 2, SAMPLE).astype(int)  # of the blocks, from the first to the last
    only = np.zeros((len(shape.parts), len(WIDTHS)), bool)
    only[parts] = True
    start = time.process_time()
    measured_by_window(model, tokens, RTN(), WIDTHS, only=only)
    scaled = (time.process_time() - start) * len(shape.parts) / SAMPLE
    by_round = pd.DataFrame(seconds).pivot(index="round", columns="way", values="seconds")
    plain = by_round.pop("forward and back")
    rows = [{"quantity": "forward and back: processor seconds", "value": plain.median()}]
    for way in by_round:
        ratio = (by_round[way] / plain).median()
        rows.append({"quantity": f"{way} / forward and back", "value": ratio, "bar": BARS.get(way, "")})
    rows.append({"quantity": "measured / forward and back, scaled from a few parts", "value": scaled / plain.median()})
    for way in ("forward and back", "fisher", "predicted", "output error"):
        told = subprocess.run(
            [sys.executable, __file__, name, "--peak", way], capture_output=True, text=True, check=True
        )
        rows.append({"quantity": f"peak memory, MB: {way}", "value": int(told.stdout.split()[-1]) / 1e6})
    rows.append({"quantity": "the model, MB", "value": shape.total_bytes / 1e6})
    rows.append({"quantity": "gradient of a block in float32, MB", "value": 4 * max(shape.linear_weights) / 1e6})
    table = pd.DataFrame(rows).assign(model=name)
    folder = ROOT / ("_build/benchmarks" if options.quick else "results/benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    results.save_rows(table, folder / "costs.csv", threads=torch.get_num_threads())
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
