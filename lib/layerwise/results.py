"""Rows with provenance: the sweep that makes them, the store that survives a kill, the tables that are committed.

A point is a dict of settings; running it gives one or more rows; every finished point is one file, so that whatever
stops a sweep, a rerun computes only what is missing.
"""

import datetime
import hashlib
import importlib.metadata
import inspect
import json
import os
import platform
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

PACKAGES = ("torch", "transformers", "numpy", "scipy", "pandas", "lm_eval", "datasets", "safetensors")


def sweep(points: Iterable[Mapping], run: Callable, setup: Callable | None = None, store="rows/") -> pd.DataFrame:
    """Run every point that isn't in `store` yet and return all rows, in the order of the points, as a tidy table.

    `run(point)`, or `run(point, shared)` with `shared = setup()` made once and only if something is left to run,
    returns a dict or a list of dicts; a row is the point's fields plus these, plus `seconds` for the whole point.
    A point is known again by its fields, the source of `run` and `setup`, and the source of what computes in this
    library. What else those two call or take from around them is not looked into: put it into the points (of a model,
    its `fingerprint`), or start another store.

    A point that fails is a row with its fields and an `error`; the others go on, a warning at the end says which
    failed, and a rerun tries them again. Points are settings that JSON can hold, or functions, which are known by
    their source and appear in rows by their name.
    """
    points = [dict(point) for point in points]
    code = _source(run) + _source(setup)
    files = [Path(store) / f"{_key(point, code)}.json" for point in points]
    found = [_load(file) for file in files]
    shared: tuple = ()
    origin = provenance()
    failures = []
    bar = tqdm(zip(points, files, strict=True), total=len(points), desc="sweep", unit="point")
    for i, (point, file) in enumerate(bar):
        if found[i] is not None:
            continue
        if setup is not None and not shared:
            shared = (setup(),)
        try:
            found[i] = _run(point, run, shared)
        except Exception as error:
            failures.append(f"{_named(point)}: {type(error).__name__}: {error}")
            found[i] = [_named(point) | {"error": f"{type(error).__name__}: {error}"}]
        else:
            _write(file, json.dumps({"rows": found[i], "provenance": origin}, indent=1, default=_plain))
    if failures:
        listed = "\n  ".join(failures)
        warnings.warn(f"{len(failures)} of {len(points)} points failed:\n  {listed}", stacklevel=2)
    return pd.DataFrame([row for rows in found for row in rows])


def provenance() -> dict:
    """Where a number comes from: versions, commit, date, machine. What can't be known is absent, not made up.

    Holds no path and no name of the machine or its user, so that it can be published.
    """
    known = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "layerwise": _version(),
        "packages": {name: version for name in PACKAGES if (version := _installed(name))},
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if cpu := _cpu():
        known["cpu"] = cpu
    if torch.cuda.is_available():
        known["gpu"] = torch.cuda.get_device_name()
    return known | _commit()


def fingerprint(model) -> str:
    """What tells a model from another of the same name: its commit on the Hub, else a digest of its weights."""
    if commit := getattr(model.config, "_commit_hash", None):
        return commit
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def save_rows(rows: pd.DataFrame, path, **notes) -> None:
    """Write rows as CSV, one line a row, and beside it `path` with .json: provenance and `notes` (such as the command).

    Floats are written so that reading them back gives the same numbers; both files diff line by line.
    """
    path = Path(path)
    if path.suffix != ".csv":
        raise ValueError(f"rows are saved as CSV, so the name must end in .csv, not {path.name!r}")
    _write(path, rows.to_csv(index=False, lineterminator="\n"))
    _write(path.with_suffix(".json"), json.dumps(provenance() | notes, indent=2, default=_plain) + "\n")


def known_rows(
    path, runs: Mapping[str, Mapping], make: Callable[[], pd.DataFrame], renew: bool = False
) -> pd.DataFrame:
    """The committed rows of the models in `runs`, if they are of these very runs, else what `make` gives.

    `runs` says for each value of the column `model` what its rows depend on, such as the model's `fingerprint`, the
    text, and a `digest` of functions; it is kept beside the rows, and committed rows say so in `attrs["provenance"]`.
    A line says so where they are made. With `renew`, rows are made in any case and written; those of other models stay.
    """
    path = Path(path)
    before = load_rows(path) if path.exists() else pd.DataFrame({"model": []})
    told = before.attrs.get("provenance", {"runs": {}})["runs"]
    if not renew:
        if all(run.items() <= told.get(model, {}).items() for model, run in runs.items()):
            return before[before["model"].isin(list(runs))].reset_index(drop=True)
        print(f"{path.stem}: made now, since no rows of just these models and settings are committed")
        return make()
    rows, origin = make(), provenance()
    origin = {name: origin[name] for name in ("date", "commit", "dirty", "cpu", "gpu") if name in origin}
    others = before[~before["model"].isin(list(runs))]
    told = {model: run for model, run in told.items() if model in set(others["model"])}
    told |= {model: {**run, **origin} for model, run in runs.items()}
    save_rows(pd.concat([others, rows], ignore_index=True), path, runs=told)
    return rows


def digest(*functions: Callable) -> str:
    """What tells these functions from changed ones: a digest of their sources."""
    return hashlib.sha256("\n".join(map(_source, functions)).encode()).hexdigest()[:16]


def load_rows(path) -> pd.DataFrame:
    """Read what `save_rows` wrote; an empty field is a missing value, and `rows.attrs["provenance"]` says whence."""
    path = Path(path)
    rows = pd.read_csv(path, keep_default_na=False, na_values=[""])
    sidecar = path.with_suffix(".json")
    if sidecar.exists():
        rows.attrs["provenance"] = json.loads(sidecar.read_text())
    return rows


def _run(point, run, shared):
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
    return json.loads(json.dumps([_named(point) | {"seconds": seconds} | dict(row) for row in rows], default=_plain))


def _named(point):
    return {name: value.__name__ if callable(value) else value for name, value in point.items()}


def _key(point, code):
    text = json.dumps(point, sort_keys=True, default=lambda value: _source(value) if callable(value) else _plain(value))
    return hashlib.sha256("\n".join([_library(), code, text]).encode()).hexdigest()[:32]


@cache
def _library() -> str:
    """The sources of this library, but for those that only show what was computed; the items of its tasks too."""
    folder = Path(__file__).parent
    shown = [folder / "figures", folder / "book", folder / "claims"]
    files = [*sorted(folder.rglob("*.py")), *sorted((folder / "world" / "tasks").glob("*.*l"))]
    files = [file for file in files if not any(file.is_relative_to(path) for path in shown)]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def _source(function):
    """A text that changes when the function does."""
    if function is None:
        return ""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError) as error:
        raise ValueError(
            f"the source of {function!r} can't be read, so a changed version of it couldn't be told from this one: "
            "pass a function that is defined in a notebook cell or a file"
        ) from error


def _plain(value):
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (np.ndarray, tuple)):
        return list(value)
    raise TypeError(f"{value!r} is a {type(value).__name__}, which a row can't hold: use numbers, text, lists or dicts")


def _load(file):
    """Rows of a finished point; None if there are none, or if what is there isn't whole."""
    try:
        return json.loads(file.read_text())["rows"]
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
        return None


def _write(path, text):
    """All or nothing: the file appears under its name when every byte of it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp makes files that only their owner reads
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _version():
    from layerwise import __version__

    return __version__


def _installed(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _commit():
    """Commit of the checkout that this library runs from, and whether its tracked files were changed since."""
    here = Path(__file__).parent

    def git(*command):
        return subprocess.run(["git", *command], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # A package installed inside some other checkout (a virtual environment in it) is not part of that one.
        git("ls-files", "--error-unmatch", "__init__.py")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return {}
