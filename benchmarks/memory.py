"""Peak memory of each kind of work, by the number of blocks, and as predicted: `python benchmarks/memory.py`, about
eight minutes.

Random Llamas of width 512 with 6, 12 and 24 blocks, in float32. Each job runs in a fresh process, whose peak is what
Linux counts, less that of a process which has imported the same and does nothing:

- *score*, *evaluate*, *serve*: the dense model;
- *compress*: `lw.compress`, to a plan that slices and to one that quantizes;
- *in place*: the same with `inplace=True`;
- *checkpoint*: `lw.compress_checkpoint`, which never holds the model, of a checkpoint in files of 50 MB.

All but the last have a prediction, by `lw.memory`, which should be within 15 %. Writes `memory.csv` to
`results/benchmarks`: megabytes, and their ratios to the model and to the prediction; with `--quick`, of smaller models,
to `_build/benchmarks`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import layerwise as lw
import numpy as np
import pandas as pd
import torch
from layerwise import results
from layerwise.evaluation import timing
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parent.parent
BLOCKS = (6, 12, 24)
JOBS = [("dense", way) for way in ("score", "evaluate", "serve")]
JOBS += [(kind, way) for kind in ("slicing", "quantizing") for way in ("compress", "in place", "checkpoint")]
PARTS = {"score": "scoring", "evaluate": "evaluating", "serve": "serving"}  # of `lw.memory`; the others compress
VOCABULARY, WINDOWS, LENGTH = 4000, 16, 256
ENVIRONMENT = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back to the system at once


def save(folder: Path, blocks: int, width: int) -> int:
    """Write a random model to a folder; returns its bytes."""
    config = LlamaConfig(
        num_hidden_layers=blocks,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 64 * 64,
        num_attention_heads=width // 64,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder, max_shard_size="50MB")
    return lw.size(model).bytes


def plan_for(kind: str, config: LlamaConfig) -> lw.Plan | None:
    shape = lw.shape(config)
    if kind == "slicing":
        return lw.plans.constant_slices(shape, 0.25)
    return lw.plans.bits(shape, np.arange(shape.L), shape.L // 2, 8, 4) if kind == "quantizing" else None


def peak(kind: str, way: str, folder: str) -> int:
    """Bytes that this process has held at the most when it is done."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokens = torch.randint(VOCABULARY, (WINDOWS, LENGTH))
    config = LlamaConfig.from_pretrained(folder)
    plan = plan_for(kind, config)
    given = tokens if kind == "slicing" else None
    if way == "checkpoint":
        lw.compress_checkpoint(folder, Path(folder) / "small", plan, given, device="cpu")
    elif way != "nothing":
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
        if way == "score":
            lw.scores.lim(model, tokens)
        elif way == "evaluate":
            lw.perplexity(model, tokens)
        elif way == "serve":
            timing.generate(model, tokens[:1], 1)
        else:
            lw.compress(model, plan, given, inplace=way == "in place")
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])


def measured(kind: str, way: str, folder: str) -> int:
    """`peak` in a process of its own."""
    command = [sys.executable, __file__, "--peak", kind, way, folder]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT).stdout)


def predicted(kind: str, way: str, folder: str) -> float:
    """What `lw.memory` says of it; of a checkpoint it says nothing."""
    if way == "checkpoint":
        return float("nan")
    config = LlamaConfig.from_pretrained(folder)
    of = {"windows": WINDOWS, "length": LENGTH, "inplace": way == "in place", "dtype": torch.float32}
    return getattr(lw.memory(config, plan_for(kind, config), **of), PARTS.get(way, "compressing"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller models, to see whether the benchmark works")
    parser.add_argument("--peak", nargs=3, help="print the peak memory in bytes of one kind, way and folder")
    asked = parser.parse_args()
    if asked.peak:
        print(peak(*asked.peak))
        return
    width, rows = (128 if asked.quick else 512), []
    for blocks in BLOCKS:
        with tempfile.TemporaryDirectory() as folder:
            size = save(Path(folder), blocks, width)
            nothing = measured("dense", "nothing", folder)
            for kind, way in JOBS:
                more, told = measured(kind, way, folder) - nothing, predicted(kind, way, folder)
                row = {"kind": kind, "way": way, "blocks": blocks, "model_mb": size / 1e6, "peak_mb": more / 1e6}
                row |= {"predicted_mb": told / 1e6, "peak / model": more / size, "predicted / peak": told / more}
                rows.append(row)
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    out = ROOT / ("_build/benchmarks" if asked.quick else "results/benchmarks")
    for column, digits in (("peak_mb", 0), ("predicted / peak", 2)):
        print(column)
        print(table.pivot(index=["kind", "way"], columns="blocks", values=column).round(digits).to_string())
    results.save_rows(table, out / "memory.csv", command="python benchmarks/memory.py")


if __name__ == "__main__":
    main()
