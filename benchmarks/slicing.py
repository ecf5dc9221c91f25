"""Slicing beside one plain forward pass over the same tokens, in time and memory: `python benchmarks/slicing.py`.

The model is a random Llama of 110M parameters (time does not depend on the values of weights), its head tied to the
embedding. What is compared alternates, so that what else the machine does hits all alike; a ratio is the median over
rounds of the ratios within a round. Processor seconds, summed over threads, barely notice a busy machine. Memory is
the peak of a fresh process, as Linux counts it. Takes about fifteen minutes on two quiet cores.

Writes `slicing.csv` (what was aimed at, beside its bar), `slicing_seconds.csv` (each kind of run beside its floor),
`slicing_growth.csv` with `slicing_growth.png` (time by blocks and by tokens) and `slicing_speed.csv` (sliced models at
work) to `results/benchmarks`; with `--quick`, of a small model, to `_build/benchmarks`.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import layerwise as lw
import numpy as np
import pandas as pd
import torch
from layerwise import results
from layerwise.backbone.structure import blocks
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parent.parent
FULL = {"blocks": 12, "width": 768, "vocabulary": 32_000, "windows": 32, "length": 512, "batch": 4, "rounds": 3}
QUICK = FULL | {"blocks": 4, "width": 128, "vocabulary": 1_000, "windows": 16, "length": 128}
PEAKS = ("forward", "slice", "slice in place")  # what is run in a fresh process for its memory
CLOCKS = ["seconds", "processor_seconds"]


def llama(options, count: int | None = None, dtype: str = "float32") -> LlamaForCausalLM:
    """A random Llama of `count` blocks, with heads of 64 and an MLP of 8/3 of the width."""
    config = LlamaConfig(
        num_hidden_layers=count or options.blocks,
        hidden_size=options.width,
        intermediate_size=options.width * 8 // 3,
        num_attention_heads=options.width // 64,
        vocab_size=options.vocabulary,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).to(getattr(torch, dtype)).eval().requires_grad_(False)


def random_tokens(options, windows: int | None = None) -> torch.Tensor:
    """Token ids `[windows, length]`."""
    return torch.randint(options.vocabulary, (windows or options.windows, options.length))


def constant(model, mean: float = 0.25) -> lw.Plan:
    """SliceGPT's plan: `mean` of the width, everywhere."""
    return lw.plans.constant_slices(lw.shape(model), mean)


def grid(model) -> list[lw.Plan]:
    """The 21 plans of a sweep: SP of 20, 30 and 40 %, each with seven SB from SP down to 0."""
    shape, importance = lw.shape(model), np.random.default_rng(0).random(len(blocks(model)))
    points = [(mean, mean * (part / 6)) for mean in (0.2, 0.3, 0.4) for part in range(7)]
    return [lw.plans.dynamic_slices(shape, importance, mean=mean, base=base) for mean, base in points]


def forward(model, tokens: torch.Tensor, batch: int) -> None:
    """What slicing is compared with."""
    with torch.inference_mode():
        for part in tokens.split(batch):
            model(input_ids=part, use_cache=False)


def alternate(runs: dict[tuple, Callable], names: list[str], rounds: int) -> pd.DataFrame:
    """Time each run once a round, a short one until half a second is over; `names` are the parts of what runs go by.

    Rows: names, round, `seconds` by the clock and `processor_seconds` of all threads, both per call.
    """
    rows = []
    for number in range(rounds):
        for key, run in runs.items():
            calls, start = 0, (time.perf_counter(), time.process_time())
            while calls == 0 or time.perf_counter() - start[0] < 0.5:
                run()
                calls += 1
            spent = [time.perf_counter() - start[0], time.process_time() - start[1]]
            rows.append([*key, number, *(total / calls for total in spent)])
            print(f"round {number + 1} of {rounds}: {key}: {rows[-1][-2]:.3f} s", flush=True)
    return pd.DataFrame(rows, columns=[*names, "round", *CLOCKS])


def ratio(times: pd.DataFrame, above: tuple[str, str], below: tuple[str, str]) -> pd.Series:
    """Time of the run (name, dtype) `above` over that of `below`, median over rounds, by each clock."""
    by_run = times.set_index(["name", "dtype", "round"])[CLOCKS].sort_index()
    return (by_run.loc[above] / by_run.loc[below]).median()


def compared(model, tokens, options) -> dict[str, Callable]:
    """What is timed in each dtype."""
    states = torch.randn(options.batch * options.length, options.width, dtype=model.dtype)
    weight, plan = blocks(model)[0].mlp.up_proj.weight, constant(model)
    return {
        "matmul": lambda: states @ weight.T,
        "forward": lambda: forward(model, tokens, options.batch),
        "slice": lambda: lw.compress(model, plan, tokens=tokens, batch=options.batch),
    }


def shared(model, tokens, options) -> dict[str, Callable]:
    """What is timed in float32 alone: the parts of a sweep, and what a floor consists of."""
    samples = torch.randn(4 * options.width, options.width, dtype=torch.float64)
    gram, plans, last = samples.T @ samples, grid(model), {}

    def sweep():
        for plan in plans:
            lw.compress(model, plan, calibration=last["bases"])

    return {
        "eigendecomposition": lambda: torch.linalg.eigh(gram),
        "forward without head": lambda: forward(model.base_model, tokens, options.batch),
        "calibrate": lambda: last.update(bases=lw.calibrate(model, tokens, batch=options.batch)),
        "slice to 21 plans": sweep,
    }


def seconds(options) -> tuple[pd.DataFrame, list[dict]]:
    """Slicing, calibrating and the sweep: medians beside their floors; and the ratios that are aimed at."""
    tokens, runs = random_tokens(options), {}
    for dtype in ("float32", "bfloat16"):
        model = llama(options, dtype=dtype)
        for run in compared(model, tokens[: options.batch], options).values():
            run()  # a first call also allocates, and lets libraries choose their kernels
        runs |= {(name, dtype): run for name, run in compared(model, tokens, options).items()}
        if dtype == "float32":
            runs |= {(name, dtype): run for name, run in shared(model, tokens, options).items()}
    times = alternate(runs, ["name", "dtype"], options.rounds)
    of_forward = "slicing 25 % / forward"
    single, half = ("slice", "float32"), ("slice", "bfloat16")
    sweep = ratio(times, ("slice to 21 plans", "float32"), ("calibrate", "float32"))
    return floors(times, lw.shape(model), options), [
        aim(f"{of_forward}, float32", ratio(times, single, ("forward", "float32")), "<= 1.4"),
        aim(f"{of_forward} without head, float32", ratio(times, single, ("forward without head", "float32"))),
        aim(f"{of_forward}, bfloat16", ratio(times, half, ("forward", "bfloat16"))),
        aim("slicing in float32 / in bfloat16", ratio(times, single, half), ">= 1.7"),
        aim("calibration and 21 plans / calibration", 1 + sweep, "<= 2"),
    ]


def aim(quantity: str, values: pd.Series, bar: str | None = None) -> dict:
    """A line of the summary: what was measured by the clock and, if that differs, by processor time; and its bar."""
    return {
        "quantity": quantity,
        "value": values["seconds"],
        "by_processor_time": values["processor_seconds"],
        "bar": bar,
    }


def floors(times: pd.DataFrame, shape, options) -> pd.DataFrame:
    """Median times by run and dtype, and what each run needs at the least by the rates that were measured beside it.

    `teraflop` are those of the dense model's matrix products, attention being causal; an eigendecomposition has about
    9 D^3 (Golub and Van Loan, Matrix Computations, section 8.3). The floor of slicing is one pass through the dense
    blocks and its eigendecompositions. Gram matrices and changes of basis are not in it, nor is what it saves because
    its blocks read a stream that is narrower already: so slicing can come out below its floor.
    """
    tokens, D = options.windows * options.length, shape.D
    inside = 2 * tokens * (sum(shape.linear_weights) + shape.L * options.length * D)
    work = {  # floating-point operations outside of eigendecompositions, and how many of these
        "matmul": (2 * options.batch * options.length * D * (D * 8 // 3), 0),
        "forward": (inside + 2 * tokens * options.vocabulary * D, 0),
        "forward without head": (inside, 0),
        "slice": (inside, 2 * shape.L),
        "calibrate": (inside, 2 * shape.L + 1),
    }
    rows = times.groupby(["name", "dtype"], sort=False)[CLOCKS].median().reset_index()
    by_run = rows.set_index(["name", "dtype"])["seconds"]
    for k, (name, dtype) in enumerate(by_run.index):
        if name in work:
            flop, bases = work[name]
            rate = work["matmul"][0] / by_run["matmul", dtype]
            rows.loc[k, ["teraflop", "eigendecompositions"]] = flop / 1e12, bases
            rows.loc[k, "floor_seconds"] = flop / rate + bases * by_run["eigendecomposition", "float32"]
        elif name == "eigendecomposition":
            rows.loc[k, "teraflop"] = 9 * D**3 / 1e12
    return rows


def growth(options) -> tuple[pd.DataFrame, list[dict]]:
    """Processor time to slice by number of blocks and by calibration tokens, and the straight line through it."""
    unit = options.windows // 4
    sizes = [("blocks", count, unit) for count in (2, 4, 8, 16)]
    sizes += [("tokens", 4, unit * k) for k in (1, 2, 4, 8)]
    models = {count: llama(options, count) for count in (2, 4, 8, 16)}
    runs = {size: compared(models[size[1]], random_tokens(options, size[2]), options)["slice"] for size in sizes}
    times = alternate(runs, ["varied", "blocks", "windows"], options.rounds)
    rows = times.groupby(["varied", "blocks", "windows"], sort=False)[CLOCKS].median().reset_index()
    rows["tokens"] = rows.pop("windows") * options.length
    found = []
    for varied, part in rows.groupby("varied", sort=False):
        x, y = part[varied], part["processor_seconds"]
        rows.loc[part.index, "line"] = line = np.polyval(np.polyfit(x, y, 1, w=1 / y), x)
        off, power = np.abs(y / line - 1).max(), np.polyfit(np.log(x), np.log(y), 1)[0]
        found += [
            {"quantity": f"time by {varied}: furthest from a straight line", "by_processor_time": off},
            {"quantity": f"time by {varied}: slope of the log-log plot", "by_processor_time": power},
        ]
    return rows, found


def draw(rows: pd.DataFrame):
    """The log-log plot of `growth`: points measured, and the straight line, which log scales bend by its fixed cost."""
    import matplotlib.pyplot as plt  # not above: processes whose memory is measured have no need of it
    from layerwise import figures

    figures.style()
    figure, axes = plt.subplots(2, 1, figsize=(figures.WIDTH, 4.6))
    for ax, (varied, part) in zip(axes, rows.groupby("varied", sort=False), strict=True):
        x = np.geomspace(part[varied].min(), part[varied].max())
        ax.plot(x, np.interp(x, part[varied], part["line"]), color=figures.GREY, label="straight line")
        ax.plot(part[varied], part["processor_seconds"], "o", color=figures.COLOURS[0], label="measured")
        ax.set(xscale="log", yscale="log", xlabel=varied, ylabel="processor seconds")
        ax.set_xticks(part[varied], [f"{value:,}" for value in part[varied]])
        ax.set_yticks(part["line"], [f"{value:.2g}" for value in part["line"]])
        ax.minorticks_off()
    axes[0].legend()
    return figure


def speed(options) -> pd.DataFrame:
    """Reading, writing and memory of sliced models, over the dense one, beside what the parameters predict.

    Prefill is predicted by the parameters of the blocks, decoding by those and the head's, memory by all bytes.
    """
    dense = llama(options)
    tokens = random_tokens(options, options.batch)
    models = {0.0: dense} | {mean: lw.compress(dense, constant(dense, mean), tokens=tokens) for mean in (0.25, 0.5)}
    runs = [
        {"slice": mean, **lw.speed(model, prompt=options.length)._asdict()}
        for _ in range(options.rounds)
        for mean, model in models.items()
    ]
    rows = pd.DataFrame(runs).groupby("slice").median().reset_index()
    inside = [sum(p.numel() for p in blocks(model).parameters()) for model in models.values()]
    passed = [count + model.lm_head.weight.numel() for count, model in zip(inside, models.values(), strict=True)]
    rows["parameters"], stored = zip(*map(lw.size, models.values()), strict=True)
    for name, predicted in {"prefill": inside, "decode": passed, "memory": stored}.items():
        of_dense = np.array(predicted) / predicted[0]
        rows[f"{name}_over_dense"] = rows[name] / rows[name][0]
        rows[f"{name}_predicted"] = of_dense if name == "memory" else 1 / of_dense
    return rows


def peak(options, name: str) -> int:
    """Bytes that this process has held at the most, once it has done one of PEAKS."""
    model, tokens = llama(options), random_tokens(options)
    if name == "forward":
        forward(model, tokens, options.batch)
    else:
        lw.compress(model, constant(model), tokens=tokens, batch=options.batch, inplace=name == "slice in place")
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])


def peaks(quick: bool, rounds: int) -> list[dict]:
    """The peak memory of fresh processes, in GB of 10^9 bytes: medians, since it differs by some per cent."""
    found = []
    for name in PEAKS:
        command = [sys.executable, __file__, "--peak", name] + ["--quick"] * quick
        printed = [subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout for _ in range(rounds)]
        bar = "<= 1.3" if name == "slice in place" else None
        found.append(
            {"quantity": f"peak memory, GB: {name}", "value": np.median([*map(int, printed)]) / 1e9, "bar": bar}
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small model, to see whether the benchmark works")
    parser.add_argument("--peak", choices=PEAKS, help="print the peak memory in bytes of doing only this")
    asked = parser.parse_args()
    options = argparse.Namespace(**(QUICK if asked.quick else FULL))
    torch.manual_seed(0)
    if asked.peak:
        print(peak(options, asked.peak))
        return
    (costs, ratios), (grown, lines) = seconds(options), growth(options)
    summary = pd.DataFrame(ratios + peaks(asked.quick, options.rounds) + lines)
    if asked.quick:
        summary = summary.drop(columns="bar")  # bars are for the full model
    out = ROOT / ("_build/benchmarks" if asked.quick else "results/benchmarks")
    tables = {"slicing": summary, "slicing_seconds": costs, "slicing_growth": grown, "slicing_speed": speed(options)}
    for name, rows in tables.items():
        print(f"\n{name}\n{rows.to_string(index=False)}")
        results.save_rows(rows, out / f"{name}.csv", command="python benchmarks/slicing.py", settings=vars(options))
    draw(grown).savefig(out / "slicing_growth.png", dpi=200)


if __name__ == "__main__":
    main()
