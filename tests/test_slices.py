"""Slicing plans: one total for rivals of a budget, the paper's rule where nothing clamps, sizes to the parameter."""

import ast
import math
import sys
from pathlib import Path

import layerwise as lw
import numpy as np
import pytest
from families import FAMILIES, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from layerwise.backbone.shapes import Matrix, Shape, Slicing
from layerwise.plans import Layer, Plan, constant_slices, dynamic_slices

settings.register_profile("no deadline", deadline=None)  # a busy machine is no failure
settings.load_profile("no deadline")


def llama_like(L, D, vocabulary=50):
    """Shape of a Llama-like model in float16 with an MLP of 3 D and a head of its own."""
    block, other = 13 * D * D + 2 * D, (2 * vocabulary + 1) * D
    attention = (Matrix(D, D, "read"),) * 3 + (Matrix(D, D, "written"),)
    matrices = (*attention, *(Matrix(3 * D, D, "read"),) * 2, Matrix(D, 3 * D, "written at the end"))
    return Shape(
        L=L,
        D=D,
        dtype="float16",
        parameters=(block,) * L,
        matrices=(matrices,) * L,
        bytes=(2 * block,) * L,
        other_parameters=other,
        other_bytes=2 * other,
        tied=False,
        slicing=Slicing(
            reads=(10 * D,) * L,
            writes=(3 * D,) * L,
            untouched=(0,) * L,
            parallel=False,
            embedding_rows=vocabulary,
            final_parameters=(vocabulary + 1) * D,
            head_rows=vocabulary,
            head_bias=0,
        ),
    )


def widths(plan):
    return np.array([layer.width for layer in plan.layers])


@st.composite
def problems(draw, whole=False):
    """Shape, importance, mean, base and multiple that can be met; `whole`: both shares are whole units."""
    L, units, multiple = draw(st.integers(1, 14)), draw(st.integers(1, 40)), draw(st.sampled_from((1, 2, 8)))
    scores = draw(
        st.one_of(
            st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=L, max_size=L),
            st.lists(st.floats(-1, 0), min_size=L, max_size=L),  # minus cosines, as LIM has them
            st.integers(0, L - 1).map(lambda i: np.eye(L)[i]),
            st.integers(0, L - 1).map(lambda i: -np.eye(L)[i]),
            st.just([0.3] * L),
        )
    )
    if whole:
        mean = draw(st.integers(0, units - 1)) / units
        base = draw(st.integers(0, round(mean * units))) / units
    else:
        mean = draw(st.floats(0, 1 - 0.5 / units))
        base = mean * draw(st.floats(0, 1))
    return llama_like(L, units * multiple), np.array(scores), mean, base, multiple


@given(problems())
def test_plans_of_one_mean_have_one_total_and_possible_widths(problem):
    shape, importance, mean, base, multiple = problem
    found = widths(dynamic_slices(shape, importance, mean, base, multiple))
    constant = widths(constant_slices(shape, mean, multiple))
    assert found.sum() == constant.sum() and len(set(constant)) == 1
    assert (found % multiple == 0).all() and (found >= multiple).all()
    # No block loses less than the base, up to the nearest multiple of it.
    assert (found <= multiple * math.floor((1 - base) * shape.D / multiple + 0.5 + 1e-6)).all()


@given(problems())
def test_a_less_important_block_is_never_wider(problem):
    shape, importance, mean, base, multiple = problem
    check_order(importance, widths(dynamic_slices(shape, importance, mean, base, multiple)), multiple)


def check_order(importance, found, multiple):
    noise = 1e-9 * np.ptp(importance / 4)  # of float64, with room; a quarter, since the range itself may overflow
    for score in importance:
        assert found[importance / 4 < score / 4 - noise].max(initial=0) <= found[importance == score].min()
        assert np.ptp(found[importance == score]) <= multiple, "equal scores differ by rounding at most"


@given(problems(), st.floats(0.01, 100), st.floats(-10, 10))
def test_scale_and_offset_of_a_score_do_not_matter(problem, scale, offset):
    shape, importance, mean, base, multiple = problem
    importance = np.round(importance / max(1, np.abs(importance).max()), 3)
    plan = dynamic_slices(shape, importance, mean, base, multiple)
    assert dynamic_slices(shape, scale * importance + offset, mean, base, multiple) == plan


@given(problems(whole=True))
def test_the_papers_rule_where_nothing_is_clamped(problem):
    shape, importance, mean, base, multiple = problem
    redundancy = [-score for score in np.clip(importance, -1e9, 1e9)]
    low, high = min(redundancy), max(redundancy)
    if high - low < 1e-3:
        redundancy, low, high = [1.0] * shape.L, 0.0, 1.0
    r = [(x - low) / (high - low) for x in redundancy]
    slices = [base + (mean - base) * x / (sum(r) / shape.L) for x in r]
    found = widths(dynamic_slices(shape, [-x for x in redundancy], mean, base, multiple))
    if max(slices) * shape.D <= shape.D - multiple:
        for width, share in zip(found, slices, strict=True):
            assert abs(width - (1 - share) * shape.D) < multiple * (1 + 1e-6)


def test_the_rule_by_hand():
    # r = 1, .5, .25, .25, 0 with the mean .4; slices .1 + .2 r / .4
    plan = dynamic_slices(llama_like(5, 100), [-0.9, -0.7, -0.6, -0.6, -0.5], mean=0.3, base=0.1)
    assert widths(plan).tolist() == [40, 65, 78, 77, 90]  # 77.5 twice: of equal ones the first is rounded up
    assert plan.mean_slice == pytest.approx(0.3) and plan.head is None


def test_of_equal_remainders_the_more_important_are_rounded_up():
    # r = 1, 0, 4/7, 1/7; widths 20 - 28/3 r: all end in 2/3, though not in float64, and two of three can be rounded up
    plan = dynamic_slices(llama_like(4, 20), [0.2, 0.9, 0.5, 0.8], mean=0.2)
    assert widths(plan).tolist() == [10, 20, 15, 19]


def test_the_range_of_scores_may_overflow():
    shape = llama_like(3, 64)
    assert dynamic_slices(shape, [-1.7e308, 0, 1.7e308], 0.3) == dynamic_slices(shape, [-1, 0, 1], 0.3)


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        # r = 1, .5, .1, 0. The rule asks for cuts of 150, 75, 15, 0: the 51 too many go to the second and third ...
        (0.6, [1, 1, 58, 100]),
        # ... and where all three have nothing left, to the fourth.
        (0.8, [1, 1, 1, 77]),
    ],
)
def test_what_a_block_cannot_lose_is_cut_from_the_others(mean, expected):
    plan = dynamic_slices(llama_like(4, 100), [-1.0, -0.5, -0.1, 0.0], mean)
    assert widths(plan).tolist() == expected


def test_one_redundant_block_is_not_cut_by_more_than_it_has():
    found = widths(dynamic_slices(llama_like(12, 100), -np.eye(12)[5], mean=0.30, base=0.10))
    assert found[5] == 1 and set(np.delete(found, 5)) == {76, 77} and found.sum() == 12 * 70


@pytest.mark.parametrize("budget", ["width", "parameters"])
def test_equal_scores_and_a_base_of_all_mean_constant_slicing(budget):
    shape = llama_like(5, 64)
    assert dynamic_slices(shape, [-0.7] * 5, 0.3, 0.1, budget=budget) == constant_slices(shape, 0.3, budget=budget)
    assert dynamic_slices(shape, [1, 5, 2, 4, 3], 0.3, base=0.3) == constant_slices(shape, 0.3)


@pytest.mark.parametrize(
    ("D", "mean", "multiple", "width"),
    [
        (128, 0.30, 1, 90),
        (128, 0.30, 8, 88),
        (128, 0.0, 8, 128),
        (32, 0.125, 8, 32),  # 28 is as near to 24
        (5, 0.3, 1, 4),  # 3.5, though not in float64
        (10, 0.95, 1, 1),
    ],
)
def test_constant_slicing_takes_the_nearest_multiple_and_of_two_the_wider(D, mean, multiple, width):
    plan = constant_slices(llama_like(3, D), mean, multiple)
    assert widths(plan).tolist() == [width] * 3
    assert plan.mean_slice == pytest.approx(1 - width / D)


def unit_cost(shape, multiple):
    """Parameters that one more unit of width costs at most, in any block: where all else is whole."""
    cut = shape.slicing
    return multiple * (cut.reads[0] + cut.embedding_rows + cut.writes[0] + 5 * shape.D)


@given(problems(), st.floats(0.001, 0.95))
def test_plans_of_one_size_differ_by_less_than_a_unit_of_width(problem, cut):
    shape, importance, _, base, multiple = problem
    rules = {"multiple": multiple, "budget": "parameters"}
    allowed = (1 - cut) * shape.total_parameters
    plans = []
    for scores in (importance, np.zeros(shape.L)):
        try:
            plans.append(dynamic_slices(shape, scores, cut, base, **rules))
        except ValueError as error:
            assert "can be cut" in str(error)
            return
    for plan in plans:
        size = plan.predicted_parameters(shape)
        assert allowed - unit_cost(shape, multiple) < size <= allowed * (1 + 1e-9)
        assert (widths(plan) <= multiple * math.floor((1 - base) * shape.D / multiple + 0.5 + 1e-6)).all()
    check_order(importance, widths(plans[0]), multiple)


def test_constant_slicing_of_one_size_is_the_largest_total_width_that_fits():
    shape = llama_like(4, 16)
    for cut in np.linspace(0.02, 0.8, 40):
        total = widths(constant_slices(shape, cut, budget="parameters")).sum()
        allowed = (1 - cut) * shape.total_parameters

        def smallest(total):  # of all even spreads of this total
            low, more = divmod(total, 4)
            return Plan(tuple(Layer(width=low + (i < more)) for i in range(4)), 16).predicted_parameters(shape)

        assert smallest(total) <= allowed < smallest(total + 1)


@given(st.integers(1, 8), st.integers(2, 30), st.sampled_from((1, 4)), st.data())
def test_the_size_of_a_constant_plan_is_a_budget_that_gives_it_back(L, units, multiple, data):
    shape = llama_like(L, units * multiple)
    plan = constant_slices(shape, data.draw(st.integers(1, units - 1)) / units, multiple)
    cut = 1 - plan.predicted_bytes(shape) / shape.total_bytes
    if cut >= 0:  # shortcut matrices may outweigh a thin slice
        assert constant_slices(shape, cut, multiple, "bytes") == plan


def test_parameters_and_bytes_are_one_budget_where_all_is_stored_alike():
    shape = llama_like(6, 64)
    plans = [dynamic_slices(shape, range(6), 0.3, 0.1, budget=budget) for budget in ("parameters", "bytes")]
    assert plans[0] == plans[1]
    assert plans[0].mean_slice > 0.35, "a cut of the width is a smaller cut of the parameters"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": 1.0}, "mean must be a share, at least 0 and below 1, not 1.0"),
        ({"mean": -0.1}, "mean must be a share"),
        ({"mean": "much"}, "mean must be a share, .* not 'much'"),
        ({"mean": 0.3, "base": float("nan")}, "base must be a share, .* not nan"),
        ({"mean": 0.2, "base": 0.3}, "base 0.3 is above the mean 0.2"),
        ({"mean": 0.97}, "a mean slice of 0.97 leaves no width: at most 0.96875 can be cut"),
        ({"mean": 0.8, "multiple": 8}, "leaves no width: at most 0.75 can be cut"),
        ({"mean": 0.3, "multiple": 5}, "multiple must divide the width 16, not be 5: take one of 1, 2, 4, 8, 16"),
        ({"mean": 0.3, "multiple": 0}, "multiple must divide the width 16"),
        ({"mean": 0.3, "multiple": 2.0}, "multiple must divide the width 16, not be 2.0"),
        ({"mean": 0.3, "budget": "energy"}, 'budget must be "width", "parameters" or "bytes", not \'energy\''),
        ({"mean": 0.3, "importance": [1, 2]}, r"importance must be 3 numbers, one for each block, .* shape is \(2,\)"),
        ({"mean": 0.3, "importance": [1, np.nan, 2]}, "importance must be finite, but is nan for block 1"),
        ({"mean": 0.3, "importance": [1, 2, -np.inf]}, "importance must be finite, but is -inf for block 2"),
        ({"mean": 0.3, "importance": ["a", "b", "c"]}, "importance must be 3 numbers"),
        ({"mean": 0.99, "budget": "parameters"}, "cuts 0.99 of the parameters: 0.0000 to 0.8[0-9]* can be cut"),
        ({"mean": 0.1, "base": 0.5, "budget": "bytes"}, "cuts 0.1 of the bytes: 0.[2-4][0-9]* to 0.8[0-9]* can be"),
    ],
)
def test_what_cannot_be_met_says_what_can(arguments, message):
    with pytest.raises(ValueError, match=message):
        dynamic_slices(llama_like(3, 16), **{"importance": [1, 2, 3]} | arguments)


READS = {"q_proj", "k_proj", "v_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj", "fc1"}
WRITES = {"o_proj", "out_proj", "dense", "down_proj", "fc2"}


def literal_size(model, kept, stream, head, tied):
    """Parameters of the sliced model, counted module by module by their names in the checkpoint."""
    total, parts = 0, dict(model.named_modules())
    layer_norm = model.config.model_type in ("opt", "phi")
    parallel = model.config.model_type == "phi"
    vocabulary = model.config.vocab_size
    for name, module in parts.items():
        last, own = name.rpartition(".")[2], list(module.named_parameters(recurse=False))
        block = next((int(part) for part in name.split(".") if part.isdigit()), None)
        if last in ("embed_tokens", "embed_positions"):
            total += module.weight.shape[0] * stream[0]
        elif last == "lm_head":
            bias = module.bias is not None or (head is not None and layer_norm)
            total += vocabulary * stream[-1] + bias * vocabulary
            if tied:  # one table of the dense width, where it takes less with its entrance and its exit
                width = model.config.hidden_size
                one = vocabulary * width + width * stream[0] + (0 if head is None else head * width)
                total += min(0, one - vocabulary * (stream[0] + stream[-1]))
        elif block is None and "norm" in last:
            total += 0 if head is not None else sum(p.numel() for _, p in own)
        elif block is not None and block not in kept or "layernorm" in last or last.endswith("layer_norm"):
            continue
        elif last in READS:
            bias = module.bias is not None or layer_norm
            total += module.out_features * stream[kept.index(block)] + bias * module.out_features
        elif last in WRITES:
            at_end = parallel or last in ("down_proj", "fc2")
            total += stream[kept.index(block) + at_end] * (module.in_features + (module.bias is not None))
        else:
            total += sum(p.numel() for _, p in own)
    for i in range(len(kept)):
        total += stream[i] * stream[i + 1] + (0 if parallel else stream[i] ** 2)
    return total


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_predicted_parameters_are_those_of_the_sliced_modules(family, tied):
    model = tiny(family, tie_word_embeddings=tied)
    shape = lw.shape(model)
    for head in (None, 20):
        whole = Plan((Layer(width=10), Layer(width=32), Layer(width=25)), 32, head)
        assert whole.predicted_parameters(shape) == literal_size(model, [0, 1, 2], (10, 32, 25, head or 32), head, tied)
        dropped = whole | Plan((Layer(), Layer(keep=False), Layer()), 32)
        assert dropped.predicted_parameters(shape) == literal_size(model, [0, 2], (10, 25, head or 32), head, tied)
        assert dropped.predicted_bytes(shape) == 4 * dropped.predicted_parameters(shape)
    partly = Plan((Layer(), Layer(width=8), Layer()), 32)
    assert partly.predicted_parameters(shape) == literal_size(model, [0, 1, 2], (32, 8, 32, 32), None, tied)


def test_a_plan_that_slices_nothing_predicts_the_dense_size():
    model = tiny("llama", tie_word_embeddings=True)
    shape = lw.shape(model)
    assert Plan((Layer(),) * 3, 32).predicted_parameters(shape) == shape.total_parameters
    dropped = Plan((Layer(), Layer(keep=False, width=4), Layer()), 32)
    assert dropped.predicted_parameters(shape) == shape.total_parameters - shape.parameters[1]
    assert not dropped.slices and Plan((Layer(width=32),), 32).slices and Plan((Layer(),), 32, head=32).slices


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan((Layer(width=8),) * 2, 16), "a plan for 2 layers of width 16 says nothing of a model with 3 of width 16"),
        (Plan((Layer(width=8),) * 3, 8), "a plan for 3 layers of width 8 says nothing"),
    ],
)
def test_a_size_that_is_not_known_is_not_guessed(plan, message):
    for predicted in (plan.predicted_parameters, plan.predicted_bytes, plan.effective_bits):
        with pytest.raises(ValueError, match=message):
            predicted(llama_like(3, 16))


def test_plans_know_numbers_only():
    """What is imported at the top of each file; imports for type checkers do not count."""
    found = set()
    for path in Path(lw.plans.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module)
    ours = {name for name in found if name.startswith("layerwise.plans")}
    assert "numpy" in found and found - ours - {"numpy", "numpy.typing", "scipy.optimize", "scipy.sparse"} <= set(
        sys.stdlib_module_names
    ) | {"collections.abc"}
