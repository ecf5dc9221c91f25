"""A study finds what is known, runs what is missing, and commits what code without changes has made."""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import layerwise as lw
import numpy as np
import pandas as pd
import pytest
import torch
from layerwise.experiments import study as studies
from layerwise.experiments.rows import accuracy_rows, cost_table, item_rows, window_rows
from layerwise.quantization import RTN

CLEAN = {"commit": "0" * 40, "dirty": False, "date": "2026-11-30"}


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """As in a checkout without changes, whatever this one has."""
    monkeypatch.setattr(studies, "provenance", lambda: dict(CLEAN))


@pytest.fixture
def study(tmp_path):
    def make(full=False, **more):
        of = {"length": 32, "test": 3, "results": tmp_path / "results", "rows": tmp_path / "rows"}
        return lw.Study("bits", "embedded/6L", full=full, **of | more)

    return make


def bits(study, score, quantizer="rtn", order="LIM"):
    shape = study.shapes["6L"]
    return [
        study.case("6L", lw.plans.bits(shape, score, k, 4, 2), quantizer, order=order, lowered=k) for k in (0, 3, 6)
    ]


def counted(monkeypatch):
    """How many cases were run, by the name of what ran them."""
    ran = []
    for name in ("quality", "values", "answers"):
        before = getattr(studies.Runner, name)

        def counting(self, cases, before=before, name=name, **settings):
            cases = list(cases)
            ran.extend([name] * len(cases))
            return before(self, cases, **settings)

        monkeypatch.setattr(studies.Runner, name, counting)
    return ran


def test_quality_is_what_compress_and_compare_give(study):
    first = study()
    plans = {
        "bits": lw.plans.bits(first.shapes["6L"], np.arange(6), 3, 4, 2),
        "slices": lw.plans.constant_slices(first.shapes["6L"], 0.3),
        "drop": lw.plans.drop(first.shapes["6L"], np.arange(6), 2),
    }
    rows = first.quality("plans", [first.case("6L", plan, "rtn", kind=kind, n=4) for kind, plan in plans.items()])
    model, test = first.models["6L"], first.test("6L")
    for row in rows.to_dict("records"):
        small = lw.compress(model, plans[row["kind"]], tokens=first.text("6L", n=4), quantizer="rtn")
        expected = lw.compare(small, model, test)
        assert row["loss"] == pytest.approx(expected.loss, abs=1e-6)
        assert row["kl_high"] == pytest.approx(expected.kl_high, abs=1e-6)
        assert row["bytes"] == lw.size(small).bytes
        assert np.mean([row[f"w{i}"] for i in range(3)]) == pytest.approx(row["loss"], abs=1e-5)
    shared = first.quality("plans", [first.case("6L", plans["slices"], n=4, shared=True)])
    small = lw.compress(model, plans["slices"], calibration=lw.calibrate(model, first.text("6L", n=4)))
    assert shared["loss"].item() == pytest.approx(lw.compare(small, model, test).loss, abs=1e-6)
    dense = first.quality("plans", [first.case("6L", None, kind="dense")])
    assert dense["loss"].item() == dense["kl"].item() == 0
    long = window_rows(rows)
    assert list(long["window"].unique()) == [0, 1, 2] and len(long) == 9


def by_part(study, seed, widths=(4, 3, 2)):
    shape = study.shapes["6L"]
    rng = np.random.default_rng(seed)
    return lw.plans.by_part(shape, [widths[i] for i in rng.integers(len(widths), size=len(shape.parts))])


def test_windows_may_be_those_of_the_divergence(study):
    first = study()
    cases = [*bits(first, np.arange(6)), first.case("6L", lw.plans.constant_slices(first.shapes["6L"], 0.3))]
    by_loss, by_kl = first.quality("loss", cases), first.quality("kl", cases, windows="kl")
    assert not set(by_loss["key"]) & set(by_kl["key"])
    for rows, mean in ((by_loss, "loss"), (by_kl, "kl")):
        assert rows[["w0", "w1", "w2"]].mean(axis=1).to_numpy() == pytest.approx(rows[mean].to_numpy(), abs=2e-6)
    assert by_loss["kl"].to_numpy() == pytest.approx(by_kl["kl"].to_numpy())


def test_plans_by_matrix_are_put_together_and_known_by_what_they_say(study, monkeypatch):
    first = study()
    plans = [by_part(first, seed) for seed in range(3)]
    monkeypatch.setattr("layerwise.experiments.cases.compress", None)  # an assembly does without
    rows = first.quality("parts", [first.case("6L", plan, "rtn", number=i) for i, plan in enumerate(plans)])
    model, test, shape = first.models["6L"], first.test("6L"), first.shapes["6L"]
    assert rows["key"].nunique() == 3 and set(rows) - {"model", "key", "draw", "number", "seconds"} == {
        *("loss", "loss_low", "loss_high", "kl", "kl_low", "kl_high", "bytes", "effective_bits", "w0", "w1", "w2")
    }
    for row, plan in zip(rows.to_dict("records"), plans, strict=True):
        small = lw.compress(model, plan)
        assert row["kl"] == pytest.approx(lw.compare(small, model, test).kl, abs=1e-6)
        assert row["bytes"] == lw.size(small).bytes
        assert row["effective_bits"] == plan.effective_bits(shape) and 2 < row["effective_bits"] < 5
    ran = counted(monkeypatch)
    again = study()
    again.quality("parts", [again.case("6L", lw.Plan.from_json(plan.to_json()), "rtn") for plan in plans])
    assert not ran


def test_a_quantizer_without_matrices_is_run_plan_by_plan(study):
    class Whole:
        def __call__(self, model, bits, tokens=None):
            return model

        def block(self, block, bits):
            return block

    first = study()
    plan = lw.Plan((lw.Layer(matrices={"mlp.up_proj": 4}),) * 6, first.shapes["6L"].D)
    rows = first.quality("whole", [first.case("6L", plan, Whole())])
    assert rows["loss"].item() == 0 and rows["kl"].item() == 0


def test_choices_rest_on_calibration_text(study):
    first = study()
    plan = lw.plans.bits(first.shapes["6L"], np.arange(6), 3, 8, 2)
    slices = lw.plans.constant_slices(first.shapes["6L"], 0.3)
    cases = [first.case("6L", plan, "rtn", kind="bits"), first.case("6L", slices, n=4, kind="slices")]
    seen = first.quality("seen", cases, split="calibration")
    unseen = first.quality("unseen", cases)
    model, text = first.models["6L"], first.text("6L", "calibration", first.test_windows)
    for i, case in enumerate(cases):
        small = lw.compress(model, case.plan, tokens=case.calibration, quantizer="rtn")
        expected = lw.evaluation.window_differences(small, model, text)[0]
        np.testing.assert_allclose(seen.filter(regex=r"^w\d").iloc[i], expected, atol=1e-5)
    assert not set(seen["key"]) & set(unseen["key"]) and (seen["loss"] != unseen["loss"]).all()


def test_quality_on_another_corpus_is_that_of_its_text(study):
    first = study()
    plan = lw.plans.bits(first.shapes["6L"], np.arange(6), 3, 8, 2)
    rows = first.quality("other", [first.case("6L", plan, "rtn")], corpus="world/sums")
    model, tokenizer = first.models["6L"], first.tokenizers["6L"]
    text = lw.tokens(tokenizer, "world/sums", "test", n=first.test_windows, length=first.length)
    expected = lw.compare(lw.compress(model, plan, quantizer="rtn"), model, text).loss
    assert rows["loss"].item() == pytest.approx(expected, abs=1e-5)
    assert first.ledger.find(rows["key"].item()).origin["text"] == "world/sums"


def test_a_table_of_costs_is_what_the_function_gave(study):
    first = study()
    table = np.arange(12.0).reshape(6, 2)
    costs = first.values("costs", {"mine": lambda model, tokens: table}, n=1, label="cost", quantizer="rtn")
    others = costs.assign(cost="another", w0=7.0, w2=1.0)
    mixed = pd.concat([costs.sample(frac=1, random_state=0), others])
    assert (cost_table(mixed, "6L", "rtn", "mine") == table).all()


def test_what_is_known_is_not_run_again_and_labels_decide_nothing(study, monkeypatch):
    ran = counted(monkeypatch)
    score = study().score("6L", lw.scores.lim, n=4)
    first = study()
    rows = first.quality("orders", bits(first, score))
    assert ran == ["values", "quality", "quality", "quality"]
    again = study()
    assert np.array_equal(again.score("6L", lw.scores.lim, n=4), score)
    more = again.quality("another", bits(again, score, order="another name"))
    assert len(ran) == 4
    assert (more["order"] == "another name").all()
    pd.testing.assert_frame_equal(more.drop(columns="order"), rows.drop(columns="order"))


def test_an_order_more_runs_only_what_is_new(study, monkeypatch):
    first = study()
    first.quality("orders", bits(first, np.arange(6)))
    ran = counted(monkeypatch)
    second = study()
    rows = second.quality("orders", bits(second, np.arange(6)) + bits(second, -np.arange(6), order="mine"))
    assert len(rows) == 6 and len(ran) == 1  # all high and all low are the same plans in any order
    ran.clear()
    second.quality("orders", bits(second, np.arange(6), RTN(group=32)))
    assert len(ran) == 3


def test_a_readers_quantizer_is_known_by_its_code(study, monkeypatch, tmp_path):
    class Mine(RTN):
        pass

    ran = counted(monkeypatch)
    first = study()
    first.quality("orders", bits(first, np.arange(6), Mine()))

    class Mine(RTN):  # noqa: F811 as in a cell that is edited and run again
        """Another."""

        def matrix(self, weights, bits):
            return super().matrix(0.9 * weights, bits)

    first.quality("orders", bits(first, np.arange(6), Mine()))
    assert len(ran) == 6


def test_the_quick_profile_runs_what_is_quick_and_says_what_is_left(study, capsys):
    quick = study()
    rows = quick.quality("orders", bits(quick, np.arange(6)), quick=lambda labels: labels["lowered"] == 3)
    assert list(rows["lowered"]) == [3]
    assert "orders: 2 results of the full profile aren't there" in capsys.readouterr().out


def test_the_full_profile_commits_and_the_quick_one_shows_it(study, monkeypatch, tmp_path):
    full = study(full=True)
    rows = full.quality("orders", bits(full, np.arange(6)))
    table = tmp_path / "results" / "bits" / "orders.csv"
    told = json.loads(table.with_suffix(".json").read_text())
    assert told["labels"] == ["draw", "order", "lowered"]
    assert [*told["runs"].values()] == [CLEAN | {"text": "world", "length": 32}]
    ran = counted(monkeypatch)
    shown = study(rows=tmp_path / "elsewhere")
    found = shown.quality("orders", bits(shown, np.arange(6)), quick=lambda labels: False)
    assert not ran
    pd.testing.assert_frame_equal(found, rows, check_dtype=False)
    checked = shown.recheck(count=2)
    assert len(checked) == 2 and (checked["apart"] < 1e-5).all()


def test_other_orders_of_a_table_stay_when_one_is_made_anew(study, tmp_path):
    for order, importance in {"a": np.arange(6), "b": -np.arange(6), "a ": None}.items():
        full = study(full=True)
        importance = np.arange(6)[::-1] ** 2 if importance is None else importance
        full.quality("orders", bits(full, importance, order=order.strip()))
    rows = pd.read_csv(tmp_path / "results" / "bits" / "orders.csv")
    assert rows["order"].value_counts().to_dict() == {"a": 3, "b": 3}


@pytest.mark.parametrize(("column", "more"), [("w1", 0.01), ("kl", 0.01), ("bytes", 1)])
def test_a_committed_result_that_is_wrong_fails(column, more, study, tmp_path):
    full = study(full=True)
    full.quality("orders", bits(full, np.arange(6)))
    path = tmp_path / "results" / "bits" / "orders.csv"
    rows = pd.read_csv(path)
    rows[column] += more
    rows.to_csv(path, index=False)
    shown = study(rows=tmp_path / "elsewhere")
    shown.quality("orders", bits(shown, np.arange(6)))
    with pytest.raises(AssertionError, match="committed results are not what is computed now"):
        shown.recheck()


def test_changed_code_commits_nothing(study, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(studies, "provenance", lambda: CLEAN | {"dirty": True})
    full = study(full=True)
    full.quality("orders", bits(full, np.arange(6)))
    assert not (tmp_path / "results").exists()
    assert "commit them and run again" in capsys.readouterr().out
    monkeypatch.setattr(studies, "provenance", lambda: dict(CLEAN))
    ran = counted(monkeypatch)
    full = study(full=True)  # makes them anew, from code that has a commit
    full.quality("orders", bits(full, np.arange(6)))
    assert len(ran) == 3 and (tmp_path / "results" / "bits" / "orders.csv").exists()


def test_what_fails_is_told_and_the_others_are_kept(study):
    def refuses(model, bits, tokens=None):
        if 2 in bits:
            raise ValueError("not below 4 bits")
        return lw.quantization.RTN()(model, bits)

    one = study()
    with pytest.warns(UserWarning, match="(?s)orders: 2 of 3 failed.*lowered 3: ValueError: not below 4 bits"):
        rows = one.quality("orders", bits(one, np.arange(6), refuses))
    assert list(rows["lowered"]) == [0]


def test_values_by_block_and_by_window(study):
    def by_window_of(model, tokens):
        return np.arange(12).reshape(6, 2)

    one = study()
    rows = one.values("scores", {"ZD": lw.scores.zd, "mine": by_window_of}, n=2)
    assert rows["value"].notna().sum() == 6
    assert rows[rows["score"] == "mine"]["w1"].tolist() == [1, 3, 5, 7, 9, 11]
    assert np.allclose(one.score("6L", lw.scores.zd, n=2), lw.scores.zd(one.models["6L"]))


def test_committed_results_of_other_models_stand_beside(study, tmp_path, capsys):
    full = study(full=True)
    full.values("scores", {"LIM": lw.scores.lim}, n=4)
    path = tmp_path / "results" / "bits" / "scores.csv"
    text = path.read_text()
    path.write_text(text + text.split("\n", 1)[1].replace("6L,", "a real one,"))
    both = study(beside="6L, a real one, of nobody")
    rows = both.values("scores", {"LIM": lw.scores.lim}, n=4)
    assert list(rows["model"].unique()) == ["6L", "a real one"]
    parts = [part["value"].to_list() for _, part in rows.groupby("model")]
    assert parts[0] == parts[1] and len(rows) == 12
    assert len(both.values("others", {"ZD": lw.scores.zd}, n=4)) == 6  # no such table

    def edited(model, tokens):
        return lw.scores.lim(model, tokens) ** 2

    asked = {"LIM": edited, "ZD": lw.scores.zd}
    anew = both.values("scores", asked, n=4)  # what is committed under this name is another function's
    assert set(anew["model"]) == {"6L"}
    assert "scores: no results of a real one stand beside" in capsys.readouterr().out
    assert len(both.score("6L", lw.scores.lim, n=4)) == 6


def test_a_label_that_reads_as_a_number_replaces_its_row(study, tmp_path):
    for _ in range(2):
        study(full=True).values("scores", {"LIM": lw.scores.lim}, n=4, group="32")
    assert len(pd.read_csv(tmp_path / "results" / "bits" / "scores.csv")) == 6


def test_committed_results_that_nothing_asks_for_are_told(study):
    full = study(full=True)
    full.quality("orders", bits(full, np.arange(6)) + bits(full, np.arange(6), order="old"))
    full.score("6L", lw.scores.lim, 2)
    full.values("dropped", {"ZD": lw.scores.zd}, n=2)
    assert full.unasked().empty
    shown = study()
    assert set(shown.unasked()["table"]) == {"orders", "scores", "dropped"}
    shown.quality("orders", bits(shown, np.arange(6)), quick=lambda labels: False)
    shown.score("6L", lw.scores.lim, 2)
    left = shown.unasked()
    assert left["table"].value_counts().to_dict() == {"orders": 3, "dropped": 1}
    assert set(left["order"].dropna()) == {"old"} and set(left["model"]) == {"6L"}


def test_of_results_that_are_asked_for_under_one_name_the_last_counts(study):
    """As when a cell that adds cases to a list is run again, edited or not."""
    one = study()
    cases, edited = bits(one, np.arange(6)), bits(one, -np.arange(6))
    rows = one.quality("orders", [*cases, *cases, *edited])
    pd.testing.assert_frame_equal(rows, one.quality("orders", edited))
    assert len(rows) == 3


def test_amounts_differ_from_model_to_model_and_hide_nothing_that_stands_beside(study, tmp_path):
    full = study(full=True)
    full.values("scores", {"LIM": lw.scores.lim}, n=4, amount="5 of 6 blocks")
    path = tmp_path / "results" / "bits" / "scores.csv"
    text = path.read_text()
    other = text.split("\n", 1)[1].replace("6L,", "a real one,").replace("5 of 6", "25 of 30")
    path.write_text(text + other)
    rows = study(beside="a real one").values("scores", {"LIM": lw.scores.lim}, n=4, amount="5 of 6 blocks")
    assert dict(rows.groupby("model")["amount"].first()) == {"6L": "5 of 6 blocks", "a real one": "25 of 30 blocks"}


def test_published_text_is_read_from_copies(study, tmp_path, monkeypatch):
    asked = []

    def tokens(tokenizer, corpus, split, **more):
        asked.append((corpus, split, more.get("data")))
        return torch.zeros(more["n"], more["length"], dtype=torch.int64)

    monkeypatch.setattr(studies.corpora, "tokens", tokens)
    first = study(corpus="wikitext2", data=tmp_path)
    first.text("6L"), first.test("6L"), first.text("6L", corpus="world/facts"), study(corpus="wikitext2").text("6L")
    assert asked == [
        ("wikitext2", "validation", tmp_path),  # its archive has no training text
        ("wikitext2", "test", tmp_path),
        ("world/facts", "calibration", None),
        ("wikitext2", "validation", None),
    ]


def test_scores_of_several_texts_stand_in_one_table(study, tmp_path):
    full = study(full=True)
    for n in (1, 2):
        full.score("6L", lw.scores.lim, n)
    full.score("6L", lw.scores.lim, 2, corpus="world/stories")
    rows = pd.read_csv(tmp_path / "results" / "bits" / "scores.csv")
    texts = rows.groupby(["windows", "text"]).size().to_dict()
    assert texts == {(1, "world"): 6, (2, "world"): 6, (2, "world/stories"): 6}
    shown = study(rows=tmp_path / "elsewhere")
    for n in (1, 2):
        shown.score("6L", lw.scores.lim, n)
    assert len(shown.recheck()) == 1  # of a table and model


def test_answers_one_row_a_task(study):
    one = study()
    plan = lw.plans.bits(one.shapes["6L"], np.arange(6), 6, 4, 2)
    cases = [one.case("6L", None, order="dense"), one.case("6L", plan, "rtn", order="LIM")]
    rows = one.answers("answers", cases, ["world_uses", "world_people"], 6)
    assert rows["right"].str.len().tolist() == [6] * 4
    expected = lw.answers(one.models["6L"], one.tokenizers["6L"], ["world_uses"], 6)["correct"]
    assert [each == "+" for each in rows["right"][0]] == expected.astype(bool).tolist()
    long = item_rows(rows)
    assert len(long) == 24 and long.query("order == 'dense' and task == 'world_uses'")["item"].tolist() == list(
        range(6)
    )
    assert long["correct"][:6].tolist() == expected.tolist()


def test_one_plan_on_two_calibration_texts_is_two_models(study):
    one = study()
    plan = lw.plans.constant_slices(one.shapes["6L"], 0.5)
    cases = [one.case("6L", plan, draw=draw, n=2) for draw in (0, 1)]
    rows = one.answers("answers", cases, ["world_uses"], 12)
    for draw, right in zip(rows["draw"], rows["right"], strict=True):
        small = lw.compress(one.models["6L"], plan, tokens=one.text("6L", n=2, seed=draw))
        expected = lw.answers(small, one.tokenizers["6L"], ["world_uses"], 12)["correct"]
        assert [each == "+" for each in right] == expected.astype(bool).tolist()


def test_accuracy_is_against_the_dense_model_on_the_same_items():
    own = [("two bits", "a", "+--+"), ("two bits", "b", "--"), ("dense", "b", "+-"), ("dense", "a", "++-+")]
    rows = pd.DataFrame(own, columns=["family", "task", "right"]).assign(model="6L", draw=0, key="k", seconds=1.0)
    found = accuracy_rows(rows.assign(bytes=rows["family"].map({"two bits": 1, "dense": 9})))
    assert found[["model", "family", "draw", "bytes"]].values.tolist() == [["6L", "two bits", 0, 1]]
    assert found["value"].item() == pytest.approx(-100 * 2 / 6)
    assert found["low"].item() < found["value"].item() < found["high"].item()


def test_a_score_that_takes_long_waits_for_the_full_profile(study, monkeypatch):
    ran = counted(monkeypatch)
    assert study().score("6L", lw.scores.lim, n=4, quick=False) is None and not ran
    made = study(full=True).score("6L", lw.scores.lim, n=4, quick=False)
    assert np.array_equal(study().score("6L", lw.scores.lim, n=4, quick=False), made) and len(ran) == 1


def test_sizes_that_a_table_lacks_are_those_of_the_plan(study, tmp_path):
    full = study(full=True)
    rows = full.quality("orders", bits(full, np.arange(6)))
    path = tmp_path / "results" / "bits" / "orders.csv"
    pd.read_csv(path).drop(columns=["bytes", "effective_bits"]).to_csv(path, index=False)
    shown = study(rows=tmp_path / "elsewhere")
    found = shown.quality("orders", bits(shown, np.arange(6)))
    assert found["bytes"].tolist() == rows["bytes"].tolist() and found["effective_bits"].notna().all()


def test_an_executor_gives_the_same(study, tmp_path):
    here = study()
    expected = here.quality("orders", bits(here, np.arange(6)))
    with ThreadPoolExecutor(1) as executor:
        there = study(executor=executor, rows=tmp_path / "elsewhere")
        found = there.quality("orders", bits(there, np.arange(6)))
    pd.testing.assert_frame_equal(found.drop(columns="seconds"), expected.drop(columns="seconds"))


def test_models_of_ones_own(study, tmp_path):
    loaded = lw.load("embedded/6L")
    own = lw.Study("bits", {"mine": loaded}, length=32, test=2, results=tmp_path / "results", rows=tmp_path / "rows")
    assert own.last == "mine" and own.quality("t", [own.case("mine", None)])["model"].item() == "mine"
    with ThreadPoolExecutor(1) as executor, pytest.raises(ValueError, match="give names"):
        lw.Study("bits", {"mine": loaded}, executor=executor)


def test_measured_values_keep_their_interval_and_damage_its_windows(study):
    one = study()
    rows = one.values("scores", {"LIM": partial(lw.scores.measure, lw.scores.lim)}, n=4)
    measured = lw.scores.measure(lw.scores.lim, one.models["6L"], one.text("6L", n=4))
    assert np.allclose(rows[["value", "low", "high"]], np.stack([measured.value, measured.low, measured.high]).T)
    found = one.values("damage", {"2 bits": lw.damage.divergence}, split="test", n=3, label="kind")
    expected = lw.damage.matrix(lw.damage.by_window(one.models["6L"], one.test("6L"), ["2 bits"]), "2 bits")
    assert np.allclose(found[["w0", "w1", "w2"]], expected, rtol=1e-4)


def test_calibration_text_is_drawn_where_something_reads_it(study):
    one = study()
    shape = one.shapes["6L"]
    by_bits = lw.plans.bits(shape, np.arange(6), 3, 4, 2)
    assert one.case("6L", by_bits, "rtn").calibration is None
    assert one.case("6L", lw.plans.drop(shape, np.arange(6), 2)).calibration is None
    assert one.case("6L", by_bits, "gptq", n=4).calibration.shape == (4, 32)
    assert one.case("6L", lw.plans.constant_slices(shape, 0.3), n=4).calibration.shape == (4, 32)


def test_a_draw_may_be_one_of_something_else_than_calibration_text(study):
    plan = lw.plans.constant_slices(study().shapes["6L"], 0.3)
    of = {draw: study().case("6L", plan, draw=draw, n=4) for draw in (0, 1)}
    fixed = study().case("6L", plan, draw=1, n=4, seed=0)
    assert fixed.labels["draw"] == 1 and fixed.calibration.equal(of[0].calibration)
    assert not fixed.calibration.equal(of[1].calibration)


def test_values_have_the_labels_that_they_are_asked_with(study):
    rows = study().values("values", {"rtn": lw.scores.lim}, n=4, label="quantizer", levels="4→2")
    assert set(rows["quantizer"]) == {"rtn"} and set(rows["levels"]) == {"4→2"} and list(rows["block"]) == [*range(6)]
