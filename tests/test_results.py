import hashlib
import json
import os
import re
import subprocess
from pathlib import Path

import layerwise as lw
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


def test_settings_that_weights_compute_by_tell_models_apart():
    by_settings = [tiny(), tiny(rope_parameters={"rope_type": "default", "rope_theta": 500.0}), tiny(rms_norm_eps=1e-3)]
    assert all(torch.equal(a, b) for a, b in zip(by_settings[0].parameters(), by_settings[1].parameters(), strict=True))
    assert len({results.fingerprint(model) for model in by_settings}) == 3
    assert results.fingerprint(tiny(attention_dropout=0.1, use_cache=False)) == results.fingerprint(tiny())


def test_an_embedded_model_is_known_by_its_weights_wherever_it_lies(tmp_path):
    model, tokenizer = lw.load("embedded/6L", device="cpu")
    saved = lw.load(lw.save(model, tmp_path / "copy"), device="cpu")[0]
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    assert results.fingerprint(model) == results.fingerprint(saved) == digest.hexdigest()[:16]
    file = tmp_path / "copy" / "config.json"
    file.write_text(file.read_text().replace("10000.0", "500.0"))
    assert results.fingerprint(lw.load(tmp_path / "copy", device="cpu")[0]) != results.fingerprint(model)


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
    (tmp_path / "notes.py").write_text("1")  # neither of the library nor a notebook
    assert provenance.provenance()["dirty"] is False
    (module := code.parent / "room" / "new.py").parent.mkdir()
    module.write_text("1")
    assert provenance.provenance()["dirty"] is True
    module.unlink()
    (chapter := tmp_path / "notebooks" / "mine.md").parent.mkdir()
    chapter.write_text("1")
    assert provenance.provenance()["dirty"] is True
    (tmp_path / ".gitignore").write_text("mine.md")
    assert provenance.provenance()["dirty"] is False
    code.write_text("2")
    assert provenance.provenance()["dirty"] is True


def test_committed_rows_come_back_as_they_were(tmp_path):
    rows = pd.DataFrame({"model": ["a", "NA"], "kl": [0.1 + 0.2, np.nan], "n": [1, 2], "ok": [True, False]})
    results.save_rows(rows, tmp_path / "deep" / "rows.csv", command="make full")
    loaded = results.load_rows(tmp_path / "deep" / "rows.csv")
    pd.testing.assert_frame_equal(loaded, rows, check_exact=True)
    assert loaded.attrs["provenance"]["command"] == "make full" and loaded.attrs["provenance"]["python"]


def test_rows_are_saved_as_csv_only(tmp_path):
    with pytest.raises(ValueError, match="must end in .csv, not 'rows.json'"):
        results.save_rows(pd.DataFrame(), tmp_path / "rows.json")
