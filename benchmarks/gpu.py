"""Models of seven and eight billion parameters on one GPU: `python benchmarks/gpu.py`, within ten minutes.

The shapes of Llama-3-8B and Mistral-7B with random weights in bfloat16 (time does not depend on their values), text of
128 windows of 2,048 random tokens. Timed, with the peak of allocated memory: one forward pass without head, scoring,
dynamic slicing in place, quantizing the less important half of the blocks to 4 bits and the others to 8 with each
quantizer; then prefill and decoding of the dense, the sliced and a quantized model. GPTQ, which looks at text,
quantizes two blocks on 16 windows.

The floor of a row is the larger of its operations over the rate of a matrix product, and its bytes over the rate of a
copy, both measured on this card in the same run: what is slower than the floor is ours, or the library's beneath.

Writes `gpu.csv` to `results/benchmarks` after each row, so that a limit on time loses only what isn't done. Without a
GPU it says so and ends; `--quick` runs small shapes on whatever there is, and writes to `_build/benchmarks`.
"""

import argparse
import gc
import time
import warnings
from pathlib import Path

import layerwise as lw
import numpy as np
import pandas as pd
import torch
from layerwise import results
from layerwise.backbone import passes
from layerwise.backbone.structure import blocks
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

ROOT = Path(__file__).parent.parent
WIDE = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
SMALL = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
MODELS = {
    "Llama-3-8B": (LlamaConfig, LlamaForCausalLM, {"vocab_size": 128_256}),
    "Mistral-7B": (MistralConfig, MistralForCausalLM, {"vocab_size": 32_000, "sliding_window": None}),
}
QUANTIZERS = ("rtn", "quanto", "hqq")


class Card:
    """A device with its rates, and a clock that waits for it."""

    def __init__(self, device: torch.device, size: int):
        self.device = device
        a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
        product, source = torch.empty_like(a), torch.empty(size * size * 8, device=device, dtype=torch.uint8)
        copy = torch.empty_like(source)
        self.operations = 2 * size**3 / self.fastest(lambda: torch.mm(a, a, out=product))
        self.bytes = 2 * source.numel() / self.fastest(lambda: copy.copy_(source))

    def fastest(self, run, repeats: int = 10) -> float:
        """Seconds of one of so many runs in a row, with no allocation between them; the best of three."""

        def many():
            for _ in range(repeats):
                run()

        return min(self.clock(many)[0] for _ in range(3)) / repeats

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def clock(self, run) -> tuple[float, float, object]:
        """Seconds, the peak of allocated bytes (NaN where the device doesn't say), and what the run gave."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.wait()
        started = time.perf_counter()
        value = run()
        self.wait()
        seconds = time.perf_counter() - started
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else float("nan")
        return seconds, peak, value

    def floor(self, operations: float = 0, moved: float = 0) -> float:
        return max(operations / self.operations, moved / self.bytes)


def build(name: str, sizes: dict, count: int, device: torch.device):
    """A model of this shape with random weights, made on the device."""
    config, kind, more = MODELS[name]
    options = sizes | more | {"num_hidden_layers": count, "max_position_embeddings": 8192}
    with torch.device(device):
        model = kind._from_config(config(**options), dtype=torch.bfloat16)
    return model.eval().requires_grad_(False)


def forward(model, tokens, batch: int = 4) -> None:
    """One pass over all tokens, without the head."""
    with torch.inference_mode():
        for part in tokens.split(batch):
            passes.run_trunk(model, part)


def measured(name: str, options, card: Card, record) -> None:
    """All rows of one model; `record(what, seconds, peak, floor, ...)` keeps them."""

    def new():
        return build(name, options.sizes, options.blocks, card.device)

    model = new()
    shape, tokens = lw.shape(model), torch.randint(1000, (options.windows, options.length))
    there = tokens.to(card.device)
    weights, size = sum(map(sum, ([p.numel() for p in b.parameters()] for b in blocks(model)))), lw.size(model).bytes
    operations = 2 * weights * tokens.numel()
    operations += 2 * options.blocks * tokens.numel() * options.length * options.sizes["hidden_size"]  # causal
    forward(model, there[:4])  # warms up
    seconds, peak, _ = card.clock(lambda: forward(model, there))
    record("forward without head", seconds, peak, card.floor(operations))
    seconds, peak, importance = card.clock(lambda: lw.scores.lim(model, tokens))
    record("scoring (LIM)", seconds, peak, card.floor(operations))

    def speed(what, model, inside=weights):
        found = lw.speed(model, batch=1, prompt=options.length // 2, new=32)
        # Of the embedding a row is read for each token; the head is applied to the last position of the prompt.
        moved = lw.size(model).bytes - (shape.other_parameters - shape.slicing.final_parameters) * 2
        prompt = 2 * inside * (options.length // 2) + 2 * shape.slicing.final_parameters
        for part, rate, floor in (
            ("prefill", found.prefill, options.length // 2 / card.floor(prompt, moved)),
            ("decode", found.decode, 1 / card.floor(moved=moved)),
        ):
            record(f"{part}, {what}", float("nan"), found.memory, float("nan"), tokens_per_second=rate, at_most=floor)

    speed("dense", model)
    some = lw.plans.bits(shape, importance, shape.L // 2, 8, 4)
    for quantizer in QUANTIZERS:
        seconds, peak, small = card.clock(lambda q=quantizer: lw.compress(model, some, quantizer=q))
        record(f"quantizing, {quantizer}", seconds, peak, card.floor(moved=size))
        if quantizer == "rtn":
            speed("rtn", small)
        del small
    two = lw.Plan(tuple(lw.Layer(bits=4) if i < 2 else lw.Layer() for i in range(shape.L)), shape.D)
    text = there[: max(2, options.windows // 8)]
    seconds, peak, small = card.clock(lambda: lw.compress(model, two, text, quantizer="gptq", inplace=True))
    record("quantizing two blocks, gptq", seconds, peak, float("nan"))
    del small, model
    model, plan = new(), lw.plans.dynamic_slices(shape, np.asarray(importance), 0.25, 0.1, multiple=options.multiple)
    seconds, peak, small = card.clock(lambda: lw.compress(model, plan, tokens, batch=4, inplace=True))
    record("dynamic slicing, in place", seconds, peak, card.floor(operations))
    speed("sliced by a quarter", small, sum(p.numel() for p in blocks(small).parameters()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small shapes, on the CPU if there is no GPU")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    asked = parser.parse_args()
    if not asked.quick and not torch.cuda.is_available():
        print("There is no GPU here, so nothing is measured. --quick tries the benchmark out on small shapes.")
        return
    options = argparse.Namespace(sizes=WIDE, blocks=32, windows=128, length=2048, multiple=64)
    if asked.quick:
        options = argparse.Namespace(sizes=SMALL, blocks=3, windows=16, length=64, multiple=1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    card = Card(device, 256 if asked.quick else 8192)
    out = ROOT / ("_build/benchmarks" if asked.quick else "results/benchmarks")
    rows = []
    for name in asked.models:

        def record(what, seconds, peak, floor, name=name, **more):
            row = {"model": name, "what": what, "seconds": seconds, "floor_seconds": floor, "peak_gb": peak / 1e9}
            rows.append(row | {"over_floor": seconds / floor} | more)
            print(rows[-1], flush=True)
            rates = {"teraflop_per_second": card.operations / 1e12, "gigabytes_per_second": card.bytes / 1e9}
            results.save_rows(
                pd.DataFrame(rows), out / "gpu.csv", command="python benchmarks/gpu.py", settings=vars(options) | rates
            )

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            measured(name, options, card, record)


if __name__ == "__main__":
    main()
