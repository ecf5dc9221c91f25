"""A step of training on two cores, in one process and in two: `python benchmarks/training.py`, about seven
minutes.

The embedded model of 24 blocks, compiled, from its first steps. Each way has processes of its own, which wait
while it isn't their turn; all ways take turns, so that what else the machine does hits all alike, and a ratio is the
median of the ratios of neighbours:

- *one thread*, and *two threads* of one process;
- *two processes* of one thread, which share the rows of each step and add up their gradients;
- *with jemalloc*: two processes with the allocator that `layerwise.world.train` advises, where it is installed.

A step is set beside three forward passes over the same rows, since a backward pass has twice the products of a forward
pass; these are compiled too, and keep nothing for a backward pass. Writes `training.csv` and `training_seconds.csv` to
`results/benchmarks`; with `--quick`, of six blocks and fewer steps, to `_build/benchmarks`.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from ctypes.util import find_library
from pathlib import Path

import pandas as pd
import torch
from layerwise import results
from layerwise.world import rows
from layerwise.world.recipes import recipe
from layerwise.world.run import Run, products
from torch import distributed

ROOT = Path(__file__).parent.parent
WAYS = {"one thread": (1, 1), "two threads": (1, 2), "two processes": (2, 1)}  # processes, threads of each
JEMALLOC = find_library("jemalloc")
KEEPING = "thp:always,oversize_threshold:0,lg_extent_max_active_fit:10,dirty_decay_ms:-1,muzzy_decay_ms:-1"
ALLOCATOR = {"LD_PRELOAD": JEMALLOC, "MALLOC_CONF": KEEPING} if JEMALLOC else {}
if JEMALLOC:
    WAYS["with jemalloc"] = WAYS["two processes"]


def member(name: str, way: str, rank: int, folder: str, pipe) -> None:
    """One process of a run: told `(work, times)`, it answers with the seconds that each time took; None ends it."""
    if Path("/proc/self/maps").exists() and ("jemalloc" in Path("/proc/self/maps").read_text()) != ("jemalloc" in way):
        raise RuntimeError(f"{way}: the allocator is another one")  # the linker only warns of what it can't preload
    processes, threads = WAYS[way]
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    if processes > 1:
        distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=processes)
    run = Run(recipe(name), 0, Path(folder) / "run")
    batch = torch.from_numpy(rows("train", run.recipe.batch, run.recipe.length)[0].astype("int64"))

    @torch.no_grad()
    def forward():
        for part in batch.chunk(processes)[rank].split(run.rows_at_once):
            run.loss(part)

    work = {"step": run.train_step, "forward": forward}
    for what, times in iter(pipe.recv, None):
        start = time.perf_counter()
        for _ in range(times):
            work[what]()
        pipe.send((time.perf_counter() - start) / times)
    if processes > 1:
        distributed.destroy_process_group()


def started(name: str, way: str, folder: str) -> list:
    """The processes of a way, by the pipes that lead to them."""
    for variable, value in ALLOCATOR.items():
        os.environ.pop(variable, None)
        if way == "with jemalloc":
            os.environ[variable] = value
    pipes = []
    for rank in range(WAYS[way][0]):
        ours, theirs = multiprocessing.Pipe()
        arguments = (name, way, rank, folder, theirs)
        multiprocessing.get_context("spawn").Process(target=member, args=arguments, daemon=True).start()
        theirs.close()  # so that a process that fails is an error here
        pipes.append(ours)
    return pipes


def turn(pipes: list, what: str, times: int) -> float:
    """Seconds for each time that some work is done, of the slowest process."""
    for pipe in pipes:
        pipe.send((what, times))
    return max(pipe.recv() for pipe in pipes)


def measured(name: str, rounds: int, steps: int) -> list[dict]:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        trainings = {}
        for way in WAYS:
            (Path(folder) / way).mkdir()
            trainings[way] = started(name, way, f"{folder}/{way}")
            for what in ("step", "forward"):
                turn(trainings[way], what, 2)  # compiles, and allocates
        for i in range(rounds):
            for way in list(trainings)[:: 1 if i % 2 else -1]:
                pipes = trainings[way]
                of = {"model": name, "round": i, "way": way}
                found.append(of | {what: turn(pipes, what, steps) for what in ("step", "forward")})
                print(found[-1], flush=True)
        for pipes in trainings.values():
            for pipe in pipes:
                pipe.send(None)
        for process in multiprocessing.active_children():
            process.join()
    return found


def ratios(model: str, times: pd.DataFrame) -> list[dict]:
    by_way = times.pivot(index="round", columns="way", values=["step", "forward"])
    step, found = by_way["step"], {}
    for way, other in (("two threads", "one thread"), ("two processes", "two threads")):
        found[f"{way} / {other}"] = step[way] / step[other]
    if JEMALLOC:
        found["two processes with jemalloc / without"] = step["with jemalloc"] / step["two processes"]
    for way in WAYS:
        found[f"{way}: a step / three forward passes"] = step[way] / (3 * by_way["forward", way])
    return [{"quantity": f"{model}, {what}", "value": ratio.median()} for what, ratio in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the smaller model, to see whether the benchmark works")
    asked = parser.parse_args()
    settings = {"rounds": 1, "steps": 2} if asked.quick else {"rounds": 6, "steps": 4}
    name = "6L" if asked.quick else "24L"
    times = pd.DataFrame(measured(name, **settings))
    summary = pd.DataFrame(ratios(name, times))
    out = ROOT / ("_build/benchmarks" if asked.quick else "results/benchmarks")
    settings |= {"products": str(products(torch.device("cpu"))), "ways": WAYS, "allocator": ALLOCATOR}
    for name, table in {"training": summary, "training_seconds": times}.items():
        print(f"\n{name}\n{table.to_string(index=False)}")
        results.save_rows(table, out / f"{name}.csv", command="python benchmarks/training.py", settings=settings)


if __name__ == "__main__":
    main()
