import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from families import tiny
from layerwise import provenance, results


def test_a_fingerprint_tells_models_apart():
    model, same, other = tiny(), tiny(), tiny()
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight[0, 0] += 1e-3
    assert results.fingerprint(model) == results.fingerprint(same) != results.fingerprint(other)
    other.config._commit_hash = "abc"
    assert results.fingerprint(other) == "abc"


def test_provenance_names_versions_commit_and_machine_and_nobody():
    known = results.provenance()
    assert {"date", "python", "layerwise", "packages", "machine", "cores", "threads"} <= set(known)
    assert known["packages"]["torch"]
    if "commit" in known:
        assert re.fullmatch("[0-9a-f]{40}", known["commit"]) and known["dirty"] in (True, False)
    text = json.dumps(known)
    assert os.uname().nodename not in text and str(Path.home()) not in text
    assert None not in known.values() and "" not in known.values()


def test_changed_code_makes_provenance_dirty_and_changed_rows_do_not(tmp_path, monkeypatch):
    for file in (code := tmp_path / "lib" / "__init__.py", rows := tmp_path / "results" / "rows.csv"):
        file.parent.mkdir()
        file.write_text("1")
    me = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    for command in (["init", "-q"], ["add", "."], [*me, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(provenance, "__file__", str(code))
    rows.write_text("2")
    assert provenance.provenance()["dirty"] is False
    (tmp_path / "notes.py").write_text("1")  # not of the library
    assert provenance.provenance()["dirty"] is False
    (module := code.parent / "room" / "new.py").parent.mkdir()
    module.write_text("1")
    assert provenance.provenance()["dirty"] is True
    module.unlink()
    code.write_text("2")
    assert provenance.provenance()["dirty"] is True


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
    assert results.digest(tiny, Path) == results.digest(tiny, Path) != results.digest(tiny)


def test_rows_are_saved_as_csv_only(tmp_path):
    with pytest.raises(ValueError, match="must end in .csv, not 'rows.json'"):
        results.save_rows(pd.DataFrame(), tmp_path / "rows.json")


def test_rows_that_do_not_say_of_which_runs_they_are_are_not_known(tmp_path):
    rows = pd.DataFrame({"model": ["m"], "value": [1.0]})
    results.save_rows(rows, tmp_path / "rows.csv")
    made = results.known_rows(tmp_path / "rows.csv", {"m": {"n": 1}}, lambda: rows.assign(value=2.0))
    assert made["value"].to_list() == [2.0]
    results.known_rows(tmp_path / "rows.csv", {"m": {"n": 1}}, lambda: rows.assign(value=3.0), renew=True)
    assert results.load_rows(tmp_path / "rows.csv")["value"].to_list() == [3.0]


def test_rows_that_do_not_say_whence_are_not_added(tmp_path):
    rows = pd.DataFrame({"model": ["a"], "y": [1]})
    results.save_rows(rows, tmp_path / "quick.csv")
    with pytest.raises(ValueError, match="quick.csv: it doesn't say of which runs"):
        results.add_rows(tmp_path / "table.csv", tmp_path / "quick.csv")
    results.save_rows(rows, tmp_path / "table.csv", runs={"a": {}})
    results.save_rows(rows.assign(z=2), tmp_path / "other.csv", runs={"a": {}})
    with pytest.raises(ValueError, match="they differ by z"):
        results.add_rows(tmp_path / "table.csv", tmp_path / "other.csv")
    assert list(results.load_rows(tmp_path / "table.csv")) == ["model", "y"]


def test_rows_that_another_process_adds_meanwhile_stay(tmp_path):
    path = tmp_path / "rows.csv"

    def slow():
        results.known_rows(path, {"b": {}}, lambda: pd.DataFrame({"model": ["b"], "y": [2]}), renew=True)
        return pd.DataFrame({"model": ["a"], "y": [1]})

    results.known_rows(path, {"a": {}}, slow, renew=True)
    assert sorted(results.load_rows(path)["model"]) == ["a", "b"]
    assert len(results.known_rows(path, {"a": {}, "b": {}}, pytest.fail)) == 2
