"""What a sweep loses when it is killed: `python benchmarks/faults.py`, about a minute.

Three sweeps of 200 points, on one and the same list of points, each in a store of its own:

- *killed*: SIGKILL at a random moment, twenty times, started again after each; a kill may come between points, while
  one runs, or while its rows are written;
- *two at a time*: two processes on one store, both killed and started again ten times;
- *a worker killed*: Dask with two workers, of which one is killed in the middle; Dask starts another in its place.

After the last start each must end by itself with every row once. Writes `faults.csv` to `results/benchmarks`: kills,
points run (more than 200 = run again because a kill hit them), rows lost, rows twice, rows damaged, and what is left of
half-written files. With `--quick`, of fewer points, to `_build/benchmarks`.
"""

import argparse
import multiprocessing
import os
import random
import signal
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import layerwise as lw
import pandas as pd
from layerwise import results
from layerwise.experiments.store import PARTIAL

ROOT = Path(__file__).parent.parent
FORK = multiprocessing.get_context("fork")  # has everything imported already
WIDE = 20_000  # numbers in a row: writing them takes long enough to be hit


def expected(x: int) -> list[int]:
    return list(range(x, x + WIDE))


def noting(log: Path, doomed: int | None = None):
    """A run that notes each start in `log`, one line each; in the process `doomed` it dies of some point."""

    def run(point):
        with open(log, "a") as file:
            file.write(f"{point['x']}\n")
        if os.getpid() == doomed and point["x"] % 10 == 9:
            os.kill(doomed, signal.SIGKILL)
        time.sleep(0.002)
        return {"y": expected(point["x"])}

    return run


def finished(folder: Path) -> int:
    return len(list((folder / "rows").glob("*.json")))


def killed(points, folder: Path, kills: int, processes: int, draw: random.Random) -> int:
    """Start sweeps, as many at a time as `processes`, and kill them, `kills` times; returns how many were killed."""
    run, hit = noting(folder / "log"), 0
    for _ in range(kills):
        before = finished(folder)
        started = [
            FORK.Process(target=lw.sweep, args=(points[::step], run, None, folder / "rows"))
            for step in (1, -1)[:processes]
        ]
        for process in started:
            process.start()
        while finished(folder) == before and any(process.is_alive() for process in started):
            time.sleep(0.001)  # a process that is still starting has nothing to lose
        time.sleep(draw.uniform(0, 0.1))
        for process in started:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            hit += process.exitcode == -signal.SIGKILL
    return hit


def with_a_dead_worker(points, folder: Path) -> int:
    from distributed import Client, LocalCluster

    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "local_directory": str(folder)}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        doomed = next(iter(client.run(os.getpid).values()))
        lw.sweep(points, noting(folder / "log", doomed), store=folder / "rows", executor=client.get_executor())
        return int(doomed not in client.run(os.getpid).values())


def counted(name: str, kills: int, points, folder: Path) -> dict:
    """A row: what is in the store after one more start, which runs what is missing."""
    before = finished(folder)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        rows = lw.sweep(points, noting(folder / "log"), store=folder / "rows")
    times = Counter(rows["x"])
    wrong = sum(row.y != expected(row.x) for row in rows.itertuples())
    return {
        "fault": name,
        "kills": kills,
        "points": len(points),
        "finished before the last start": before,
        "points run": len((folder / "log").read_text().split()),
        "rows lost": sum(times[point["x"]] == 0 for point in points),
        "rows twice": sum(n > 1 for n in times.values()),
        "rows damaged": wrong + sum("damaged" in str(each.message) for each in told),
        "half-written files left": len(list((folder / "rows").glob(f".*{PARTIAL}"))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer points and kills, to see whether it works")
    asked = parser.parse_args()
    points = [{"x": x} for x in range(20 if asked.quick else 200)]
    kills, draw = (2 if asked.quick else 20), random.Random(0)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, fault in (
            ("killed", lambda folder: killed(points, folder, kills, 1, draw)),
            ("two at a time", lambda folder: killed(points, folder, kills // 2, 2, draw)),
            ("a worker killed", lambda folder: with_a_dead_worker(points, folder)),
        ):
            folder = Path(temporary) / name
            folder.mkdir()
            rows.append(counted(name, fault(folder), points, folder))
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    bad = table[["rows lost", "rows twice", "rows damaged"]].to_numpy().sum()
    out = ROOT / ("_build/benchmarks" if asked.quick else "results/benchmarks")
    results.save_rows(table, out / "faults.csv", command="python benchmarks/faults.py")
    print(table.T.to_string())
    raise SystemExit(f"{bad} rows were lost, twice there or damaged" if bad else 0)


if __name__ == "__main__":
    main()
