"""Scoring time over the time of one plain forward pass, on the same tokens: `python benchmarks/scores.py`.

Both run in float32 and skip the head; the shape is 12 blocks of width 768 with random weights, since time does not
depend on their values. Forward and scoring alternate, so that what else the machine does hits both alike, and the
ratio is the median of the ratios of neighbours. Appends a row to `results/benchmarks/scores.jsonl`.
"""

import argparse
import json
import os
import platform
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
import transformers
from layerwise import scores
from transformers import LlamaConfig, LlamaForCausalLM

STORE = Path(__file__).parent.parent / "results" / "benchmarks" / "scores.jsonl"


def model(blocks: int, width: int) -> LlamaForCausalLM:
    """A random Llama in float32; a small vocabulary, because the head is not run."""
    config = LlamaConfig(
        num_hidden_layers=blocks,
        hidden_size=width,
        intermediate_size=4 * width * 2 // 3,
        num_attention_heads=width // 64,
        vocab_size=2048,
        max_position_embeddings=2048,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def forward(model, tokens: torch.Tensor, batch: int) -> None:
    """What scoring is compared with: the model without its head, batch by batch."""
    with torch.inference_mode():
        for part in tokens.split(batch):
            model.base_model(input_ids=part, use_cache=False)


def seconds(run) -> tuple[float, float]:
    """Wall-clock and processor seconds of one call; the latter barely notice what else the machine is doing."""
    start = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def processor() -> str:
    """The name that the system gives the processor, or its kind where it gives none."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    defaults = {"blocks": 12, "width": 768, "windows": 4, "length": 256, "batch": 2, "repeats": 9}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()

    torch.manual_seed(0)
    subject = model(options.blocks, options.width)
    tokens = torch.randint(2048, (options.windows, options.length))
    runs = {
        "forward": lambda: forward(subject, tokens, options.batch),
        "lim": lambda: scores.lim(subject, tokens, batch=options.batch),
        "zd": lambda: scores.zd(subject),
    }
    for run in runs.values():
        run()  # the first call also allocates
    times = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            times[name].append(seconds(run))

    ratios = np.median(np.divide(times["lim"], times["forward"]), axis=0)
    row = {
        **vars(options),
        **{f"{name}_seconds": round(float(np.median(each, axis=0)[0]), 4) for name, each in times.items()},
        "lim_over_forward": round(float(ratios[0]), 4),
        "lim_over_forward_processor_time": round(float(ratios[1]), 4),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    for name, value in row.items():
        print(f"{name:32} {value}")
    STORE.parent.mkdir(parents=True, exist_ok=True)
    with STORE.open("a") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
