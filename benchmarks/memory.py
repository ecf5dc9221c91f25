"""Peak memory of compressing, by the number of blocks: `python benchmarks/memory.py`, about five minutes.

Random Llamas of width 512 with 6, 12 and 24 blocks, in float32, as checkpoints in files of 50 MB. Each way runs in a
fresh process, whose peak is what Linux counts, less that of a process which has imported the same and does nothing:

- *compress*: `lw.compress` of the loaded model;
- *in place*: the same with `inplace=True`;
- *checkpoint*: `lw.compress_checkpoint`, which never holds the model.

Done to a plan that slices and to one that quantizes. Writes `memory.csv` to `results/benchmarks`: megabytes, and their
ratio to the model; with `--quick`, of smaller models, to `_build/benchmarks`.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import layerwise as lw
import numpy as np
import pandas as pd
import torch
from layerwise import results
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parent.parent
BLOCKS = (6, 12, 24)
WAYS = ("nothing", "load", "compress", "in place", "checkpoint")
VOCABULARY, WINDOWS, LENGTH = 4000, 8, 256


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


def peak(way: str, kind: str, folder: str) -> int:
    """Bytes that this process has held at the most when it is done."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokens = torch.randint(VOCABULARY, (WINDOWS, LENGTH))
    with torch.device("meta"):
        shape = lw.shape(LlamaForCausalLM(LlamaConfig.from_pretrained(folder)))
    importance = np.arange(shape.L)
    slices, bits = lw.plans.constant_slices(shape, 0.25), lw.plans.bits(shape, importance, shape.L // 2, 8, 4)
    plan, given = (slices, tokens) if kind == "slicing" else (bits, None)
    if way == "checkpoint":
        lw.compress_checkpoint(folder, Path(folder) / "small", plan, given, device="cpu")
    elif way != "nothing":
        model, _ = lw.load(folder, device="cpu")
        if way != "load":
            lw.compress(model, plan, given, inplace=way == "in place")
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller models, to see whether the benchmark works")
    parser.add_argument("--peak", nargs=3, help="print the peak memory in bytes of one way, kind and folder")
    asked = parser.parse_args()
    if asked.peak:
        print(peak(*asked.peak))
        return
    width, rows = (128 if asked.quick else 512), []
    for blocks in BLOCKS:
        with tempfile.TemporaryDirectory() as folder:
            size = save(Path(folder), blocks, width)
            for kind in ("slicing", "quantizing"):
                found = {}
                for way in WAYS:
                    command = [sys.executable, __file__, "--peak", way, kind, folder]
                    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                    found[way] = int(run.stdout)
                for way in WAYS[1:]:
                    more = found[way] - found["nothing"]
                    row = {"kind": kind, "way": way, "blocks": blocks, "model_mb": size / 1e6, "peak_mb": more / 1e6}
                    rows.append(row | {"peak / model": more / size})
                    print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    out = ROOT / ("_build/benchmarks" if asked.quick else "results/benchmarks")
    print(table.pivot(index=["kind", "way"], columns="blocks", values="peak_mb").round(0).to_string())
    results.save_rows(table, out / "memory.csv", command="python benchmarks/memory.py")


if __name__ == "__main__":
    main()
