import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import layerwise as lw
import numpy as np
import pandas as pd
import pytest
import torch
from layerwise.experiments.store import Store


def points(n=3):
    return [{"model": "tiny", "x": x} for x in range(n)]


def square(point):
    return {"y": point["x"] ** 2}


def counted(calls):
    def run(point):
        calls.append(point["x"])
        return {"y": point["x"] ** 2}

    return run


def test_a_row_is_the_fields_of_the_point_and_of_the_result(tmp_path):
    rows = lw.sweep(points(), square, store=tmp_path)
    assert rows[["model", "x", "y"]].to_dict("list") == {"model": ["tiny"] * 3, "x": [0, 1, 2], "y": [0, 1, 4]}
    assert (rows.seconds >= 0).all()


def test_a_list_of_dicts_gives_several_rows(tmp_path):
    def halves(point):
        return [{"half": "first", "y": 1.0}, {"half": "second", "y": float("nan")}]

    for _ in range(2):  # fresh, then from the store
        rows = lw.sweep(points(2), halves, store=tmp_path)
        assert rows.x.to_list() == [0, 0, 1, 1]
        assert rows.y.isna().to_list() == [False, True] * 2


def test_what_is_there_is_not_run_again(tmp_path):
    calls = []
    run = counted(calls)
    first = lw.sweep(points(2), run, store=tmp_path)
    again = lw.sweep(points(3)[::-1], run, store=tmp_path)
    assert calls == [0, 1, 2]
    assert again.x.to_list() == [2, 1, 0]
    pd.testing.assert_frame_equal(again[again.x < 2].sort_values("x", ignore_index=True), first)


def test_another_function_is_run_anew(tmp_path):
    lw.sweep(points(), square, store=tmp_path)

    def cube(point):
        return {"y": point["x"] ** 3}

    assert lw.sweep(points(), cube, store=tmp_path).y.to_list() == [0, 1, 8]


def test_an_edit_of_what_run_calls_runs_it_anew_and_what_it_writes_to_does_not(tmp_path):
    def rows(helper):
        def run(point):
            calls.append(tmp_path)
            return {"y": helper(point["x"])}

        return lw.sweep(points(), run, store=tmp_path).y.to_list()

    calls = []
    assert rows(lambda x: x + 1) == rows(lambda x: x + 1) == [1, 2, 3] and len(calls) == 3
    assert rows(lambda x: x + 2) == [2, 3, 4] and len(calls) == 6


def test_setup_is_made_once_and_only_when_needed(tmp_path):
    made = []

    def setup():
        made.append(1)
        return 10

    def run(point, shared):
        return {"y": point["x"] + shared}

    for _ in range(2):
        rows = lw.sweep(points(), run, setup=setup, store=tmp_path)
        assert rows.y.to_list() == [10, 11, 12]
    assert made == [1]


def test_functions_are_fields_known_by_their_source(tmp_path):
    def ones():
        return 1

    def run(point):
        return {"y": point["score"]()}

    assert lw.sweep([{"score": ones}], run, store=tmp_path).iloc[0][["score", "y"]].to_list() == ["ones", 1]

    def ones():  # noqa: F811 the same name, another body
        return 11

    assert lw.sweep([{"score": ones}], run, store=tmp_path).y.to_list() == [11]


def test_functions_are_told_apart_by_what_they_bring_along(tmp_path):
    def closing(k):
        def score():
            return k() if callable(k) else k

        return score

    def run(point):
        return {"y": point["score"]()}

    def sweep(*scores):
        return lw.sweep([{"score": score} for score in scores], run, store=tmp_path).y.to_list()

    assert sweep(closing(1), closing(2)) == [1, 2]
    assert sweep(closing(3), closing(closing(4)), closing(closing(5))) == [3, 4, 5]
    assert sweep(*(lambda k=k: k for k in range(2)), *(lambda *, k=k: k for k in range(2))) == [0, 1, 0, 1]
    assert len(list(tmp_path.glob("*.json"))) == 9

    @torch.inference_mode()
    def decorated():
        return 6

    def recursive(n=3):
        return n * recursive(n - 1) if n else 1

    assert sweep(decorated, recursive) == [6, 6]
    for untold in (closing(object()), Store(tmp_path).check_writable):
        with pytest.raises(ValueError, match="can't be told from others of its kind"):
            sweep(untold)


def test_a_point_that_no_row_can_hold_is_told_before_any_work(tmp_path):
    calls = []
    with pytest.raises(TypeError, match="a set, which a row can't hold"):
        lw.sweep([{"x": 1}, {"x": {1, 2}}], counted(calls), store=tmp_path)
    assert not calls


def test_a_failed_point_is_a_row_and_is_tried_again(tmp_path):
    broken = [True]

    def run(point):
        if point["x"] == 1 and broken:
            raise ZeroDivisionError("no luck")
        return {"y": point["x"]}

    with pytest.warns(UserWarning, match=r"1 of 3 points failed:\n.*'x': 1.*ZeroDivisionError: no luck"):
        rows = lw.sweep(points(), run, store=tmp_path)
    assert rows.error.to_list()[1] == "ZeroDivisionError: no luck" and rows.error.isna().sum() == 2
    assert np.isnan(rows.y[1]) and rows.x.to_list() == [0, 1, 2]

    broken.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = lw.sweep(points(), run, store=tmp_path)
    assert "error" not in rows and rows.y.to_list() == [0, 1, 2]


@pytest.mark.parametrize(
    ("result", "message"),
    [({"x": 5}, "the result has x, which the point has already"), ([1], "a dict or a list of dicts, not int")],
)
def test_results_that_make_no_rows(tmp_path, result, message):
    def run(point):
        return result

    with pytest.warns(UserWarning, match=message):
        rows = lw.sweep(points(1), run, store=tmp_path)
    assert message in rows.error[0]


def test_numpy_values_become_plain_ones(tmp_path):
    def run(point):
        return {"y": np.float64(0.1), "n": np.int64(3), "all": np.arange(2)}

    row = lw.sweep([{"x": np.int64(1)}], run, store=tmp_path).iloc[0]
    assert (row.x, row.y, row.n, row["all"]) == (1, 0.1, 3, [0, 1])


def test_a_kill_loses_no_finished_point(tmp_path):
    store, log = tmp_path / "rows", tmp_path / "log"
    pause = 0.2

    def run(point):
        with open(log, "a") as file:
            file.write(f"{point['x']}\n")
        time.sleep(pause)
        return {"y": point["x"]}

    # A forked process has everything imported already.
    process = multiprocessing.get_context("fork").Process(target=lw.sweep, args=(points(6), run, None, store))
    process.start()
    deadline = time.monotonic() + 60
    while len(list(store.glob("*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    finished = len(list(store.glob("*.json")))
    assert 2 <= finished < 6

    log.unlink()
    pause = 0
    assert lw.sweep(points(6), run, store=store).y.to_list() == [0, 1, 2, 3, 4, 5]
    assert [int(x) for x in log.read_text().split()] == list(range(finished, 6))


def logged(log, pause=0.0):
    """A run that notes in a file, one line each, what it was called with."""

    def run(point):
        with open(log, "a") as file:
            file.write(f"{point['x']}\n")
        time.sleep(pause)
        return {"y": point["x"]}

    return run


def test_two_processes_on_one_store_share_the_work(tmp_path):
    log, many = tmp_path / "log", points(12)
    run = logged(log, 0.05)
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=lw.sweep, args=(order, run, None, tmp_path / "rows")) for order in (many, many[::-1])
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    runs = log.read_text().split()
    assert set(map(int, runs)) == set(range(12)) and len(runs) < 24, "each went its own way"
    assert lw.sweep(many, run, store=tmp_path / "rows").y.to_list() == list(range(12))
    assert log.read_text().split() == runs


def test_a_damaged_file_is_reported_and_only_its_point_is_run_again(tmp_path):
    log = tmp_path / "log"
    lw.sweep(points(4), logged(log), store=tmp_path / "rows")
    files = sorted((tmp_path / "rows").glob("*.json"))
    files[0].write_text(files[0].read_text()[:30])
    files[1].write_bytes(b"\xff\xfe\x00")
    log.unlink()
    with pytest.warns(UserWarning) as warned:
        assert lw.sweep(points(4), logged(log), store=tmp_path / "rows").y.to_list() == [0, 1, 2, 3]
    told = [str(w.message) for w in warned]
    assert len(told) == 2 and all(str(file) in "".join(told) for file in files[:2])
    assert len(log.read_text().split()) == 2


def in_a_child(job):
    """Run `job()` in a forked process, and return what it returns or the error that it ends in."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()

    def run():
        try:
            there.send(job())
        except BaseException as error:
            there.send(error)

    process = context.Process(target=run)
    process.start()
    found = here.recv()
    process.join()
    return found


def test_a_full_disk_is_an_error_that_leaves_earlier_rows_alone(tmp_path):
    store = tmp_path / "rows"
    assert lw.sweep(points(2), square, store=store).y.to_list() == [0, 1]
    before = {file: file.read_text() for file in store.glob("*.json")}

    def grow(point):
        return {"y": "x" * 100_000 * point["x"]}

    def on_a_full_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        lw.sweep(points(2), square, store=store)  # all there: nothing is written
        lw.sweep(points(3), grow, store=store)

    error = in_a_child(on_a_full_disk)
    assert isinstance(error, OSError) and "rows can't be written" in str(error) and "goes on" in str(error)
    files = set(store.glob("*"))
    assert {file: file.read_text() for file in before} == before
    assert len(files) == 3, "the first point of the new sweep, and no rest of a half-written one"
    assert lw.sweep(points(3), grow, store=store).y.map(len).to_list() == [0, 100_000, 200_000]


def test_a_store_that_can_only_be_read(tmp_path):
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is nobody else's to read
        store = Path(folder) / "rows"
        lw.sweep(points(2), square, store=store)
        Path(folder).chmod(0o755)
        store.chmod(0o555)

        def as_somebody_else():
            if os.geteuid() == 0:
                os.setuid(65534)
            known = lw.sweep(points(2), square, store=store)  # nothing is missing, so nothing need be written
            ran = []
            try:
                lw.sweep(points(3), counted(ran), store=store)
            except OSError as error:
                return known.y.to_list(), str(error), ran

        values, told, ran = in_a_child(as_somebody_else)
        store.chmod(0o755)
    assert values == [0, 1] and "rows can't be written" in told
    assert not ran, "known before anything is run"


def test_a_point_too_large_for_memory_is_tried_at_half_its_batch(tmp_path):
    tried = []

    def run(point):
        tried.append(point["batch"])
        if point["batch"] > point["fits"]:
            raise torch.OutOfMemoryError("no room")
        return {"y": 1}

    many = [{"batch": 8, "fits": 8}, {"batch": 9, "fits": 4}]
    assert lw.sweep(many, run, store=tmp_path)["batch"].to_list() == [8, 4]
    assert tried == [8, 9, 4]
    with pytest.warns(UserWarning, match="at batch 8 and again at 4: no room"):
        rows = lw.sweep([{"batch": 8, "fits": 2}], run, store=tmp_path)
    assert "OutOfMemoryError" in rows.error[0] and tried[3:] == [8, 4]
    with pytest.warns(UserWarning, match="1 of 1 points failed"):
        lw.sweep([{"batch": 1, "fits": 0}], run, store=tmp_path)
    assert tried[5:] == [1]


MADE = []


def make():
    MADE.append(os.getpid())
    return len(MADE)


def plus(point, shared):
    if point.get("stop"):
        os._exit(1)
    if point.get("wrong"):
        raise LookupError("not there")
    return {"y": point["x"] + shared, "process": os.getpid()}


@pytest.fixture(params=["threads", "processes"])
def executor(request):
    MADE.clear()
    if request.param == "threads":
        pool = ThreadPoolExecutor(3)
    else:
        pool = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork"))
    with pool:
        yield pool


def test_an_executor_gives_the_rows_of_this_process(tmp_path, executor):
    many = [*points(8), {"model": "tiny", "x": 8, "wrong": True}, *points(2)]
    with pytest.warns(UserWarning, match=r"1 of 11 points failed:\n.*LookupError: not there"):
        rows = lw.sweep(many, plus, make, tmp_path / "a", executor)
    assert rows.x.to_list() == [*range(9), 0, 1] and rows.y[:8].to_list() == list(range(1, 9))
    assert len(list((tmp_path / "a").glob("*.json"))) == 8
    with pytest.warns(UserWarning):
        here = lw.sweep(many, plus, make, tmp_path / "b")
    ours = ["seconds", "process"]
    pd.testing.assert_frame_equal(rows.drop(columns=ours), here.assign(y=here.y - here.y[0] + 1).drop(columns=ours))


def test_a_setup_is_made_once_on_each_worker_and_anew_for_another_sweep(tmp_path, executor):
    made: dict[int, int] = {}  # in each process, by the sweeps that it has worked for
    for start in (0, 20):
        rows = lw.sweep([{"x": x} for x in range(start, start + 12)], plus, make, tmp_path, executor)
        for process, part in rows.groupby("process"):
            made[process] = made.get(process, 0) + 1
            assert set(part.y - part.x) == {made[process]}


def test_a_dead_worker_costs_no_finished_point(tmp_path):
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        lw.sweep(points(5), plus, make, tmp_path, pool)
        with pytest.warns(UserWarning, match="BrokenProcessPool"):
            rows = lw.sweep([*points(5), {"x": 9, "stop": True}], plus, make, tmp_path, pool)
    assert rows.error.isna().to_list() == [True] * 5 + [False]


class Breaking(ThreadPoolExecutor):
    """An executor that loses its workers when it has been given so many points."""

    def __init__(self, left):
        super().__init__(1)
        self.left = left

    def submit(self, *args):
        self.left -= 1
        if self.left < 0:
            raise BrokenExecutor("no worker is left")
        return super().submit(*args)


def test_an_executor_that_breaks_costs_no_finished_point(tmp_path):
    with Breaking(3) as pool, pytest.warns(UserWarning, match="2 of 5 points failed"):
        rows = lw.sweep(points(5), plus, make, tmp_path, pool)
    assert rows.error.isna().to_list() == [True] * 3 + [False] * 2
    assert len(list(tmp_path.glob("*.json"))) == 3


def test_a_setup_that_fails_on_a_worker_is_not_tried_for_every_point(tmp_path):
    tried = []

    def setup():
        tried.append(1)
        raise MemoryError("too large a model")

    with ThreadPoolExecutor(1) as pool, pytest.warns(UserWarning, match="MemoryError, in setup: too large a model"):
        rows = lw.sweep(points(5), plus, setup, tmp_path, pool)
    assert len(tried) == 1 and rows.error.notna().all()


def test_a_sweep_that_is_broken_off_gives_workers_nothing_more_to_do(tmp_path):
    calls = []
    store = tmp_path / "rows"

    def run(point):
        calls.append(point["x"])
        if point["x"] == 0:
            shutil.rmtree(store)
            store.write_text("a file in its place")
        time.sleep(0.01)
        return {"y": 0}

    with pytest.raises(OSError, match="rows can't be written"), ThreadPoolExecutor(1) as pool:
        lw.sweep(points(40), run, store=store, executor=pool)
    assert len(calls) < 20


def test_functions_that_no_worker_can_read_are_a_row_with_the_reason(tmp_path):
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool,
        pytest.warns(UserWarning, match="pickle"),
    ):
        rows = lw.sweep(points(2), logged(tmp_path / "log"), store=tmp_path / "rows", executor=pool)
    assert rows.error.notna().all()


def test_dask_on_a_local_cluster(tmp_path):
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client:
        rows = lw.sweep(points(6), logged(tmp_path / "log"), store=tmp_path / "rows", executor=client.get_executor())
    assert rows.y.to_list() == list(range(6))
    assert lw.sweep(points(6), logged(tmp_path / "log"), store=tmp_path / "rows").equals(rows)


def test_dask_on_a_scheduler_and_two_workers_of_which_one_is_killed(tmp_path):
    distributed = pytest.importorskip("distributed")
    file = tmp_path / "scheduler.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--scheduler-file", str(file), "--port", "0"]
    processes = [subprocess.Popen([*dask, "--no-dashboard"], **quiet)]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(file), "--no-nanny"]
    worker += ["--nthreads", "1", "--no-dashboard", "--local-directory", str(tmp_path)]
    try:
        processes += [subprocess.Popen(worker, **quiet) for _ in range(2)]
        with distributed.Client(scheduler_file=str(file), timeout=60) as client:
            client.wait_for_workers(2, timeout=60)
            log, store = tmp_path / "log", tmp_path / "rows"
            doomed = processes[-1].pid

            def run(point, shared):
                with open(log, "a") as lines:
                    lines.write(f"{point['x']} {os.getpid()} {shared}\n")
                if os.getpid() == doomed and point["x"] > 4:
                    os.kill(doomed, signal.SIGKILL)
                time.sleep(0.02)
                return {"y": point["x"]}

            def setup():
                return os.getpid()

            rows = lw.sweep(points(30), run, setup, store, client.get_executor())
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert rows.y.to_list() == list(range(30)) and "error" not in rows
    lines = [line.split() for line in log.read_text().splitlines()]
    assert {int(process) for _, process, _ in lines} == {process.pid for process in processes[1:]}
    assert all(process == shared for _, process, shared in lines), "each worker has its own setup"
