"""Train a member of the embedded family: `python -m layerwise.world.train 6L`.

The run resumes where it was when the same command is given again, also after SIGKILL, and then ends with exactly the
weights of an uninterrupted run (same machine, same number of threads and processes). On several cores, a process for
each (`torchrun --standalone --nproc-per-node 2 -m layerwise.world.train 6L`) shares the rows of every step; on two it
took 24L about four fifths of the time of `--threads 2` (`results/benchmarks/training.csv`). jemalloc, where it is
installed, helps, and helps more if it keeps what one step frees and the next takes again (`LD_PRELOAD=libjemalloc.so.2
MALLOC_CONF=thp:always,oversize_threshold:0,lg_extent_max_active_fit:10,dirty_decay_ms:-1,muzzy_decay_ms:-1`).

The schedule is warm-up, stable, decay (Hu et al. 2024, arXiv 2404.06395): as long as the final decay has not begun, a
run can be resumed with another `--tokens`, to go on while the curve still falls or to end early.
"""

import argparse
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch import distributed
from torch._dynamo.exc import BackendCompilerFailed
from tqdm.auto import tqdm

from .recipes import RECIPES, Recipe, recipe
from .run import Run

WEIGHTS = Path(__file__).parent / "weights"


def train(
    recipe: Recipe,
    folder: Path,
    seed: int = 0,
    steps: int | None = None,
    save_every: float = 300.0,
    stop: Callable[[], bool] = lambda: False,
    compiled: bool = True,
    device: str = "cpu",
) -> Run:
    """Train to the end of the recipe, or to step `steps`, saving every `save_every` seconds and at the end.

    When `stop()` turns true, in any process of several, the run saves and returns at once; `run.step < recipe.steps`
    says that it isn't done.
    """
    run = Run(recipe, seed, folder, compiled, device)
    last, saved, clock = min(steps or recipe.steps, recipe.steps), run.step, time.monotonic()
    options = {"unit": "step", "dynamic_ncols": True, "mininterval": 1.0, "disable": run.rank > 0}
    bar = tqdm(total=last, initial=run.step, desc=recipe.name, **options)
    saved_at = clock
    with bar:
        while run.step < last and not run.in_any(stop()):
            run.train_step()
            now = time.monotonic()
            run.seconds, clock = run.seconds + now - clock, now
            bar.update()
            if run.log:
                speed = (bar.format_dict["rate"] or 0) * recipe.batch * recipe.length
                bar.set_postfix_str(f"loss {run.log[-1]['loss']:.3f}, {speed:,.0f} tokens/s", refresh=False)
            if now - saved_at >= save_every:
                run.save()
                saved, saved_at = run.step, time.monotonic()
        if run.step > saved:
            run.save()
    return run


def check_beginning(recipe: Recipe, shipped: Path, folder: Path, steps: int = 200, **options) -> pd.DataFrame:
    """Train the first `steps` steps again and set their loss beside that of the shipped `loss.csv`.

    Returns step, shipped, here, difference (nats). Rounding differs between machines and numbers of threads and
    processes, so that agreement is close (0.05 nats), not exact.
    """
    facts = json.loads((shipped / "training.json").read_text())
    known = facts["recipe"] | {"betas": tuple(facts["recipe"]["betas"])}
    if Recipe(**known) != replace(recipe, tokens=known["tokens"]):
        raise ValueError(f"the recipe of {shipped} is no longer that of {recipe.name}: {known}")
    run = train(Recipe(**known), folder, facts["seed"], steps, **options)
    table = pd.read_csv(shipped / "loss.csv").set_index("step")["loss"].rename("shipped").to_frame()
    table = table.join(pd.DataFrame(run.log).set_index("step")["loss"].rename("here"), how="inner")
    return table.assign(difference=table["here"] - table["shipped"]).reset_index()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m layerwise.world.train",
        description="Train a model of the embedded family. Given again, the command goes on where it was.",
    )
    parser.add_argument("name", help=f"one of {', '.join(RECIPES)}")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the text (default: 0)")
    parser.add_argument("--tokens", type=float, help="such as 4e7 (default: the recipe's); may change until the decay")
    parser.add_argument("--out", type=Path, help="folder of the run (default: training/NAME-sSEED)")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: 1)")
    parser.add_argument("--device", default="cpu", help="as torch names it (default: cpu)")
    parser.add_argument("--eager", action="store_true", help="without torch.compile: slower, but needs no C++ compiler")
    parser.add_argument(
        "--install",
        action="store_true",
        help="put the model into the package, as NAME or NAME-sSEED, not into OUT/model",
    )
    parser.add_argument("--check", type=int, metavar="STEPS", help="only compare the shipped model's first steps")
    args = parser.parse_args(arguments)
    parent = os.getppid()
    launched = distributed.is_available() and distributed.is_torchelastic_launched()
    if launched:
        if args.check or args.device != "cpu":
            parser.error("torchrun is for trainings on a CPU: --check and --device run in one process")
        distributed.init_process_group("gloo")
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    stopped = []
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda number, frame: stopped.append(number))

    def stop():
        # a torchrun that is killed leaves its processes behind: they must not train beside those of the next
        return bool(stopped) or (launched and os.getppid() != parent)

    options = {"stop": stop, "compiled": not args.eager, "device": args.device}
    try:
        chosen = recipe(args.name)
        shipped = f"{args.name}-s{args.seed}" if args.seed else args.name
        out = args.out or Path("training") / f"{args.name}-s{args.seed}{'-check' if args.check else ''}"
        if args.check:
            table = check_beginning(chosen, WEIGHTS / shipped, out, args.check, **options)
            print(table.to_string(index=False))
            return int(table.empty or table["difference"].abs().max() > 0.05)
        if args.tokens:
            chosen = replace(chosen, tokens=int(args.tokens))
        run = train(chosen, out, args.seed, **options)
        if launched:
            distributed.destroy_process_group()
    except BackendCompilerFailed as fault:
        reason = str(fault.inner_exception).partition("\n")[0]
        parser.exit(2, f"torch.compile failed: {reason}\nIt needs a C++ compiler, such as g++; --eager does without\n")
    except (ValueError, FloatingPointError) as fault:
        parser.exit(2, f"{fault}\n")
    if run.rank:
        return 0
    if run.step < chosen.steps:
        print(f"Stopped and saved at step {run.step} of {chosen.steps}; the same command goes on from there.")
        return 128 + (stopped[0] if stopped else signal.SIGTERM)  # another process may have had the signal
    target = WEIGHTS / shipped if args.install else out / "model"
    start = f"torchrun --standalone --nproc-per-node {run.processes}" if launched else "python"
    run.export(
        target, command=f"{start} -m layerwise.world.train {args.name} --tokens {chosen.tokens} --seed {args.seed}"
    )
    print(f"Trained: {target}, test loss {run.log[-1]['test_loss']:.4f}, floor {run.test_floor:.4f} nats a token")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
