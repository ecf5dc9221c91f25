"""The sweep: every point run once, here or on the workers of an executor, and nothing lost whatever stops it.

A point is a dict of settings; running it gives one or more rows; every finished point is one file of the store, so a
rerun computes only what is missing.
"""

from __future__ import annotations

import gc
import json
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, as_completed
from contextlib import closing
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from tqdm.auto import tqdm

from layerwise.experiments.known import key, reached_code
from layerwise.experiments.store import Store, plain
from layerwise.provenance import provenance


class Outcome(NamedTuple):
    """Rows of a point and their provenance, or the error that it ended in."""

    rows: list[dict]
    origin: dict
    error: str | None = None


def sweep(
    points: Iterable[Mapping],
    run: Callable,
    setup: Callable | None = None,
    store="rows/",
    executor: Executor | None = None,
) -> pd.DataFrame:
    """Run every point that isn't in `store` yet and return all rows, in the order of the points, as a tidy table.

    A point is known again by its fields, the code of `run` and `setup` and of all that they call of yours (see
    `known.reached_code`), and `COMPUTATION` of this library. The data that they take from around them is not looked
    into: put it into the points (of a model, its `fingerprint`), or start another store.

    Parameters
    ----------
    points
        Dicts of settings that JSON can hold, or of functions, which are known by their code and all that it uses; they
        appear in rows by their name.
    run
        `run(point)`, or `run(point, shared)` where there is a `setup`, returns a dict or a list of dicts.
    setup
        `shared = setup()` is made once, and only if something is left to run.
    store
        Folder of the finished points. Several processes may sweep with one at a time: each looks, before it runs a
        point here, whether another has finished it.
    executor
        Anything with the interface of `concurrent.futures`, such as Dask's `Client.get_executor()`; without one all is
        run in this process. Each worker makes `shared` once, keeps it until its next sweep, and fails its points if
        that fails (here it would be raised). Only this process writes to the store. A process pool of the standard
        library takes functions of modules only, Dask those of notebooks too.

    Returns
    -------
    rows
        A row is the point's fields, those that `run` returns, and `seconds` for the whole point. A point that fails is
        a row with its fields and an `error`; the others go on, a warning at the end says which failed, and a rerun
        tries them again. One for which memory doesn't suffice is tried again at half of its field `batch`, if it has
        one, before it counts as failed; the row then has the batch that it was run with.

    Raises
    ------
    StoreError
        Where rows can't be written; what was finished before is kept.
    ValueError
        For code whose source can't be read or was edited since it was loaded, and for a point that can't be told from
        others.
    """
    points = [dict(point) for point in points]
    json.dumps([_named(point) for point in points], default=plain)  # what a row can't hold is told before any work
    kept, does = Store(store), [reached_code(run), setup and reached_code(setup)]
    files = [kept.file(key({"code": does, "point": point})) for point in points]
    found = {file: kept.read(file) for file in files}
    missing = {file: point for file, point in zip(files, points, strict=True) if found[file] is None}
    if missing:
        kept.check_writable()
    failures = []
    done = len(found) - len(missing)
    with tqdm(total=len(found), initial=done, desc="sweep", unit="point") as bar:
        outcomes = _on_workers(missing, run, setup, executor) if executor else _here(missing, run, setup, kept)
        with closing(outcomes):  # whatever ends this, workers get nothing more to do
            for file, outcome in outcomes:
                found[file] = outcome.rows
                if outcome.error:
                    failures.append(f"{_named(missing[file])}: {outcome.error}")
                elif outcome.origin:
                    kept.write(file, outcome.rows, outcome.origin)
                bar.update()
    if failures:
        listed = "\n  ".join(failures)
        warnings.warn(f"{len(failures)} of {len(points)} points failed:\n  {listed}", stacklevel=2)
    return pd.DataFrame([row for file in files for row in found[file]])


def _here(missing, run, setup, kept) -> Iterator[tuple[Path, Outcome]]:
    """Outcomes of points run one after the other in this process."""
    shared: tuple = ()
    origin = provenance()
    for file, point in missing.items():
        rows = kept.finished(file)  # by another process, meanwhile
        if rows is not None:
            yield file, Outcome(rows, {})
            continue
        if setup is not None and not shared:
            shared = (setup(),)
        yield file, _outcome(point, run, shared, origin)


def _on_workers(missing, run, setup, executor) -> Iterator[tuple[Path, Outcome]]:
    """Outcomes of points run by an executor, as they are finished."""
    number = uuid.uuid4().hex
    futures = {}
    try:
        for file, point in missing.items():
            try:
                futures[executor.submit(_work, number, point, run, setup)] = file
            except RuntimeError as error:  # the executor has lost its workers, or was shut down
                yield file, _failed(point, error)
        for future in as_completed(futures):
            file = futures[future]
            try:
                yield file, Outcome(*future.result())
            except Exception as error:  # the worker is gone, or never understood what was asked
                yield file, _failed(missing[file], error)
    finally:
        for future in futures:
            future.cancel()


_lock = threading.Lock()
_made: dict[str, tuple] = {}  # of a worker: for the sweep it works for, what `setup` gave or raised, and provenance


def _work(number: str, point: dict, run: Callable, setup: Callable | None) -> tuple:
    """Run a point in a worker, which makes what points share when it gets its first one of this sweep."""
    with _lock:
        if number not in _made:
            _made.clear()  # of the sweep before; two models may be more than fit
            try:
                _made[number] = ((setup(),) if setup else (), None, provenance())
            except Exception as error:  # once is enough: it may have taken long
                _made[number] = ((), _told(error, ", in setup"), {})
        shared, told, origin = _made[number]
    if told is not None:
        return tuple(_failed(point, told))
    return tuple(_outcome(point, run, shared, origin))


def _outcome(point, run, shared, origin) -> Outcome:
    try:
        return Outcome(_rows(point, run, shared), origin)
    except torch.OutOfMemoryError as error:
        batch = point.get("batch")
        if not isinstance(batch, Integral) or batch < 2:
            return _failed(point, error)
    except Exception as error:
        return _failed(point, error)
    gc.collect()  # outside of the except clause, which holds the tensors of the failed attempt
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        return Outcome(_rows(point | {"batch": int(batch) // 2}, run, shared), origin)
    except Exception as error:
        return _failed(point, _told(error, f", at batch {batch} and again at {batch // 2}"))


def _failed(point, error: Exception | str) -> Outcome:
    told = error if isinstance(error, str) else _told(error)
    return Outcome([_named(point) | {"error": told}], {}, told)


def _told(error, when="") -> str:
    return f"{type(error).__name__}{when}: {error}"


def _rows(point, run, shared) -> list[dict]:
    started = time.perf_counter()
    result = run(point, *shared)
    seconds = round(time.perf_counter() - started, 3)
    rows = [result] if isinstance(result, Mapping) else list(result)
    for row in rows:
        if not isinstance(row, Mapping):
            raise TypeError(f"run must return a dict or a list of dicts, not {type(row).__name__}")
        if clash := sorted(set(row) & set(point)):
            raise ValueError(f"the result has {', '.join(clash)}, which the point has already: rename one of them")
    # Through JSON and back, so that fresh rows and stored ones are the same.
    return json.loads(json.dumps([_named(point) | {"seconds": seconds} | dict(row) for row in rows], default=plain))


def _named(point):
    return {
        name: getattr(value, "__name__", type(value).__name__) if callable(value) else value
        for name, value in point.items()
    }
