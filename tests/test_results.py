import json
import multiprocessing
import os
import re
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from families import tiny
from layerwise import results


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
    rows = results.sweep(points(), square, store=tmp_path)
    assert rows[["model", "x", "y"]].to_dict("list") == {"model": ["tiny"] * 3, "x": [0, 1, 2], "y": [0, 1, 4]}
    assert (rows.seconds >= 0).all()


def test_a_list_of_dicts_gives_several_rows(tmp_path):
    def halves(point):
        return [{"half": "first", "y": 1.0}, {"half": "second", "y": float("nan")}]

    for _ in range(2):  # fresh, then from the store
        rows = results.sweep(points(2), halves, store=tmp_path)
        assert rows.x.to_list() == [0, 0, 1, 1]
        assert rows.y.isna().to_list() == [False, True] * 2


def test_what_is_there_is_not_run_again(tmp_path):
    calls = []
    run = counted(calls)
    first = results.sweep(points(2), run, store=tmp_path)
    again = results.sweep(points(3)[::-1], run, store=tmp_path)
    assert calls == [0, 1, 2]
    assert again.x.to_list() == [2, 1, 0]
    pd.testing.assert_frame_equal(again[again.x < 2].sort_values("x", ignore_index=True), first)


def test_another_function_is_run_anew(tmp_path):
    results.sweep(points(), square, store=tmp_path)

    def cube(point):
        return {"y": point["x"] ** 3}

    assert results.sweep(points(), cube, store=tmp_path).y.to_list() == [0, 1, 8]


def test_a_fingerprint_tells_models_apart():
    model, same, other = tiny(), tiny(), tiny()
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight[0, 0] += 1e-3
    assert results.fingerprint(model) == results.fingerprint(same) != results.fingerprint(other)
    other.config._commit_hash = "abc"
    assert results.fingerprint(other) == "abc"


def test_setup_is_made_once_and_only_when_needed(tmp_path):
    made = []

    def setup():
        made.append(1)
        return 10

    def run(point, shared):
        return {"y": point["x"] + shared}

    for _ in range(2):
        rows = results.sweep(points(), run, setup=setup, store=tmp_path)
        assert rows.y.to_list() == [10, 11, 12]
    assert made == [1]


def test_functions_are_fields_known_by_their_source(tmp_path):
    def ones():
        return 1

    def run(point):
        return {"y": point["score"]()}

    assert results.sweep([{"score": ones}], run, store=tmp_path).iloc[0][["score", "y"]].to_list() == ["ones", 1]

    def ones():  # noqa: F811 the same name, another body
        return 11

    assert results.sweep([{"score": ones}], run, store=tmp_path).y.to_list() == [11]


def test_a_failed_point_is_a_row_and_is_tried_again(tmp_path):
    broken = [True]

    def run(point):
        if point["x"] == 1 and broken:
            raise ZeroDivisionError("no luck")
        return {"y": point["x"]}

    with pytest.warns(UserWarning, match=r"1 of 3 points failed:\n.*'x': 1.*ZeroDivisionError: no luck"):
        rows = results.sweep(points(), run, store=tmp_path)
    assert rows.error.to_list()[1] == "ZeroDivisionError: no luck" and rows.error.isna().sum() == 2
    assert np.isnan(rows.y[1]) and rows.x.to_list() == [0, 1, 2]

    broken.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = results.sweep(points(), run, store=tmp_path)
    assert "error" not in rows and rows.y.to_list() == [0, 1, 2]


@pytest.mark.parametrize(
    ("result", "message"),
    [({"x": 5}, "the result has x, which the point has already"), ([1], "a dict or a list of dicts, not int")],
)
def test_results_that_make_no_rows(tmp_path, result, message):
    def run(point):
        return result

    with pytest.warns(UserWarning, match=message):
        rows = results.sweep(points(1), run, store=tmp_path)
    assert message in rows.error[0]


def test_numpy_values_become_plain_ones(tmp_path):
    def run(point):
        return {"y": np.float64(0.1), "n": np.int64(3), "all": np.arange(2)}

    row = results.sweep([{"x": np.int64(1)}], run, store=tmp_path).iloc[0]
    assert (row.x, row.y, row.n, row["all"]) == (1, 0.1, 3, [0, 1])


def test_a_half_written_file_is_computed_again(tmp_path):
    results.sweep(points(1), square, store=tmp_path)
    (file,) = tmp_path.glob("*.json")
    file.write_text(file.read_text()[:20])
    assert results.sweep(points(1), square, store=tmp_path).y.to_list() == [0]


def test_a_kill_loses_no_finished_point(tmp_path):
    store, log = tmp_path / "rows", tmp_path / "log"
    pause = 0.2

    def run(point):
        with open(log, "a") as file:
            file.write(f"{point['x']}\n")
        time.sleep(pause)
        return {"y": point["x"]}

    # A forked process has everything imported already.
    process = multiprocessing.get_context("fork").Process(target=results.sweep, args=(points(6), run, None, store))
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
    assert results.sweep(points(6), run, store=store).y.to_list() == [0, 1, 2, 3, 4, 5]
    assert [int(x) for x in log.read_text().split()] == list(range(finished, 6))


def test_provenance_names_versions_commit_and_machine_and_nobody():
    known = results.provenance()
    assert {"date", "python", "layerwise", "packages", "machine", "cores", "threads"} <= set(known)
    assert known["packages"]["torch"]
    if "commit" in known:
        assert re.fullmatch("[0-9a-f]{40}", known["commit"]) and known["dirty"] in (True, False)
    text = json.dumps(known)
    assert os.uname().nodename not in text and str(Path.home()) not in text
    assert None not in known.values() and "" not in known.values()


def test_committed_rows_come_back_as_they_were(tmp_path):
    rows = pd.DataFrame({"model": ["a", "NA"], "kl": [0.1 + 0.2, np.nan], "n": [1, 2], "ok": [True, False]})
    results.save_rows(rows, tmp_path / "deep" / "rows.csv", command="make full")
    loaded = results.load_rows(tmp_path / "deep" / "rows.csv")
    pd.testing.assert_frame_equal(loaded, rows, check_exact=True)
    assert loaded.attrs["provenance"]["command"] == "make full" and loaded.attrs["provenance"]["python"]


def test_committed_rows_are_known_as_long_as_nothing_changed_that_they_depend_on(tmp_path):
    path = tmp_path / "rows.csv"
    old = pd.DataFrame({"model": ["a", "b", "b"], "y": [1.0, 2.0, 3.0]})
    live = pd.DataFrame({"model": ["b"], "y": [4.0]})
    runs = {"a": {"revision": "1", "length": 8}, "b": {"revision": "2", "length": 8}}
    assert results.known_rows(path, runs, lambda: live) is live  # none are committed
    results.known_rows(path, runs, lambda: old, renew=True)

    def never():
        raise AssertionError

    assert results.known_rows(path, {"b": runs["b"]}, never).y.to_list() == [2.0, 3.0]
    for change in ({"revision": "3"}, {"length": 9}):
        assert results.known_rows(path, runs | {"b": runs["b"] | change}, lambda: live) is live
    assert results.known_rows(path, {"c": runs["a"]}, lambda: live) is live

    results.known_rows(path, {"b": {"revision": "3"}}, lambda: live, renew=True)  # rows of other models stay
    rows = results.load_rows(path)
    assert rows.to_dict("list") == {"model": ["a", "b"], "y": [1.0, 4.0]}
    told = rows.attrs["provenance"]["runs"]
    assert told["a"].items() >= runs["a"].items() and told["b"]["revision"] == "3" and "date" in told["b"]


def test_a_digest_changes_with_the_source():
    assert results.digest(points, square) == results.digest(points, square) != results.digest(square)


def test_rows_are_saved_as_csv_only(tmp_path):
    with pytest.raises(ValueError, match="must end in .csv, not 'rows.json'"):
        results.save_rows(pd.DataFrame(), tmp_path / "rows.json")
