"""Plans: what is in them is possible, merging has its laws, and text gives back what was written."""

import dataclasses
import json

import layerwise as lw
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layerwise.plans import Layer, Plan

WIDTH = 16
PATHS = ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")
settings.register_profile("no deadline", deadline=None)  # a busy machine is no failure
settings.load_profile("no deadline")


def layers(**kinds):
    """Layers whose fields are unset or drawn; `kinds` replaces a field's strategy."""
    strategies = {
        "keep": st.booleans(),
        "width": st.none() | st.integers(1, WIDTH),
        "bits": st.none() | st.integers(1, 16),
        "outliers": st.none() | st.floats(0, 1, exclude_max=True),
        "matrices": st.none() | st.dictionaries(st.sampled_from(PATHS), st.integers(1, 16)),
    }
    return st.builds(Layer, **strategies | kinds)


def plans(smallest=1, largest=6, **kinds):
    each = st.lists(layers(**kinds), min_size=smallest, max_size=largest)
    kept = each.filter(lambda found: any(x.keep for x in found)).map(tuple)
    ends = st.none() | st.integers(1, 16)
    return st.builds(Plan, kept, st.just(WIDTH), st.none() | st.just(WIDTH - 1), ends, ends)


unset = st.none()
widths = plans(3, 3, keep=st.just(True), bits=unset, outliers=unset, matrices=unset)
bits = plans(3, 3, keep=st.just(True), width=unset, outliers=unset)
drops = plans(3, 3, width=unset, bits=unset, outliers=unset, matrices=unset)


def only(plan, *names):
    """The plan with what it says of the ends left out, but for `names`."""
    ends = ("head", "embedding_bits", "head_bits")
    return dataclasses.replace(plan, **{name: None for name in ends if name not in names})


@given(plans())
def test_json_gives_the_plan_back(plan):
    assert Plan.from_json(plan.to_json()) == plan


@given(plans())
def test_merging_with_itself_or_with_nothing_changes_nothing(plan):
    nothing = Plan((Layer(),) * len(plan.layers), WIDTH)
    assert plan | plan == plan | nothing == nothing | plan == plan


@given(widths, bits, drops)
def test_merging_is_the_same_in_any_order_and_grouping(a, b, c):
    a, b, c = only(a, "head"), only(b, "embedding_bits"), only(c, "head_bits")
    assert a | b | c == a | (b | c) == c | b | a
    for layer, x, y, z in zip((a | b | c).layers, a.layers, b.layers, c.layers, strict=True):
        assert (layer.width, layer.bits, layer.matrices, layer.keep) == (x.width, y.bits, y.matrices, z.keep)
    assert [(a | b | c).head, (a | b | c).embedding_bits, (a | b | c).head_bits] == [
        a.head,
        b.embedding_bits,
        c.head_bits,
    ]


def test_two_values_for_one_field_name_layer_and_field():
    a, b = (Plan((Layer(bits=8), Layer(bits=bits)), WIDTH) for bits in (8, 4))
    with pytest.raises(ValueError, match="layer 1: one plan sets bits to 8, the other to 4"):
        a | b
    longer = Plan((Layer(),) * 3, WIDTH)
    with pytest.raises(ValueError, match="2 layers of width 16 can't be merged with one for 3 layers of width 16"):
        a | longer


def test_matrices_are_merged_path_by_path():
    a, b, c = (Plan((Layer(matrices=each),), WIDTH) for each in ({"q": 4, "k": 8}, {"k": 8, "v": 2}, {"k": 4}))
    assert (a | b).layers == (b | a).layers == (Layer(matrices={"q": 4, "k": 8, "v": 2}),)
    with pytest.raises(ValueError, match="layer 0: one plan sets k to 8, the other to 4"):
        a | c
    # What a plan says of whole blocks is then that of the others.
    (layer,) = (a | Plan((Layer(bits=3),), WIDTH)).layers
    assert [layer.bits_of(path) for path in "qkv"] == [4, 8, 3] and Layer(matrices={"q": 4}).bits_of("v") is None


@pytest.mark.parametrize("name", ["embedding_bits", "head_bits"])
def test_bits_of_the_ends_are_merged_like_a_field(name):
    set_, unset = (Plan((Layer(),), WIDTH, **{name: bits}) for bits in (8, None))
    assert getattr(set_ | unset, name) == getattr(unset | set_, name) == 8
    with pytest.raises(ValueError, match=f"one plan sets {name} to 8, the other to 4"):
        set_ | Plan((Layer(),), WIDTH, **{name: 4})
    with pytest.raises(ValueError, match=f"{name} must be from 1 to 16, not 0"):
        Plan((Layer(),), WIDTH, **{name: 0})


def test_matrices_are_one_thing_however_they_are_given():
    given = [{"b": 4, "a": np.int64(8)}, {"a": 8, "b": 4}, [("b", 4), ("a", 8)], (("a", 8), ("b", 4))]
    assert len({Layer(matrices=each) for each in given}) == 1
    assert Layer(matrices={}) == Layer() and dataclasses.replace(Layer(matrices=given[0]), bits=2).bits_of("a") == 8


def test_text_without_new_fields_is_what_it_was():
    """Committed results are known by it."""
    plan = Plan((Layer(bits=8), Layer(width=12, outliers=0.5), Layer(keep=False)), WIDTH, 9)
    layers = '    {"bits": 8},\n    {"width": 12, "outliers": 0.5},\n    {"keep": false}\n'
    assert plan.to_json() == '{\n  "width": 16,\n  "head": 9,\n  "layers": [\n' + layers + "  ]\n}\n"
    more = Plan((Layer(matrices={"b": 4, "a": 8}),), WIDTH, embedding_bits=6, head_bits=5)
    ends = '  "embedding_bits": 6,\n  "head_bits": 5,\n'
    layers = '    {"matrices": {"a": 8, "b": 4}}\n'
    assert more.to_json() == '{\n  "width": 16,\n' + ends + '  "layers": [\n' + layers + "  ]\n}\n"


def test_a_head_is_merged_like_a_field():
    cut, uncut = (Plan((Layer(),), WIDTH, head) for head in (8, None))
    assert (cut | uncut).head == (uncut | cut).head == (cut | cut).head == 8 and (uncut | uncut).head is None
    with pytest.raises(ValueError, match="one plan sets the head to 8, the other to 9"):
        cut | Plan((Layer(),), WIDTH, 9)


def test_stream_is_what_kept_layers_and_the_head_read():
    layers = (Layer(width=8), Layer(keep=False, width=9), Layer())
    assert Plan(layers, WIDTH).stream == (8, WIDTH, WIDTH)
    assert Plan(layers, WIDTH, head=4).stream == (8, WIDTH, 4)


def test_zero_outliers_is_a_value():
    a, b = (Plan((Layer(outliers=share),), WIDTH) for share in (0.0, 0.01))
    assert '"outliers": 0.0' in a.to_json()
    with pytest.raises(ValueError, match="outliers to 0.0, the other to 0.01"):
        a | b


def test_average_bits_is_the_papers_count():
    plan = Plan((Layer(bits=4),) * 30 + (Layer(bits=2),) * 10, WIDTH)
    assert plan.average_bits == 3.5
    assert (plan | Plan((Layer(),) * 30 + (Layer(keep=False),) * 10, WIDTH)).average_bits == 4
    assert Plan((Layer(bits=4), Layer()), WIDTH).average_bits is None
    assert Plan((Layer(bits=4, matrices={"q": 8}),), WIDTH).average_bits is None, "matrices differ in size"


def test_mean_slice_counts_kept_layers_and_leaves_unset_ones_whole():
    assert Plan((Layer(width=8), Layer(width=12), Layer()), WIDTH).mean_slice == pytest.approx(0.25)
    assert Plan((Layer(width=8), Layer(keep=False, width=1)), WIDTH).mean_slice == 0.5


def test_numbers_of_numpy_are_taken():
    plan = Plan((Layer(keep=np.True_, width=np.int64(8), bits=np.int32(4), outliers=np.float32(0.5)),), np.int64(WIDTH))
    assert plan == Plan((Layer(width=8, bits=4, outliers=0.5),), WIDTH)
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 0}, "width must be at least 1, not 0"),
        ({"width": 2.5}, "width must be a whole number, not 2.5"),
        ({"bits": 32}, "bits must be from 1 to 16, not 32"),
        ({"bits": True}, "bits must be a whole number, not True"),
        ({"outliers": 1.0}, "outliers must be a share, at least 0 and below 1, not 1.0"),
        ({"outliers": float("nan")}, "not nan"),
        ({"outliers": "much"}, "not 'much'"),
        ({"keep": 1}, "keep must be True or False, not 1"),
        ({"matrices": {"q": 17}}, "bits of q must be from 1 to 16, not 17"),
        ({"matrices": {"q": None}}, "bits of q must be a whole number, not None"),
        ({"matrices": 4}, "matrices must be bits by path, such as"),
        ({"matrices": {0: 4}}, "matrices must be bits by path, such as"),
    ],
)
def test_impossible_layers_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Layer(**fields)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((), "keep at least one layer"),
        ((Layer(keep=False),), "keep at least one layer"),
        ((Layer(), Layer(width=17)), "layer 1: width 17 is more than the model's 16"),
        ((Layer(), {"bits": 4}), "layer 1 is {'bits': 4}: it must be a Layer"),
    ],
)
def test_impossible_plans_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        Plan(layers, WIDTH)


@pytest.mark.parametrize(
    ("head", "message"), [(17, "the head: width 17 is more than the model's 16"), (0, "head must be at least 1, not 0")]
)
def test_impossible_heads_are_refused(head, message):
    with pytest.raises(ValueError, match=message):
        Plan((Layer(),), WIDTH, head)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be JSON"),
        ("[]", "a plan must be an object with width, head, layers"),
        ('{"layers": [{}]}', "a plan lacks width"),
        (
            '{"layers": [{}], "width": 4, "budget": 1}',
            "has no field 'budget'; its fields are width, head, layers, embedding_bits, head_bits",
        ),
        (
            '{"layers": [{}, {"bit": 4}], "width": 4}',
            "layer 1 has no field 'bit'; its fields are keep, width, bits",
        ),
        ('{"layers": [{"bits": 99}], "width": 4}', "layer 0: bits must be from 1 to 16, not 99"),
        ('{"layers": 3, "width": 4}', '"layers" of a plan must be a list'),
        ('{"layers": [{}], "width": null}', "needs the width"),
    ],
)
def test_text_that_is_no_plan_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Plan.from_json(text)


def test_file_has_one_line_per_layer():
    a = Plan((Layer(width=8), Layer(width=12), Layer(keep=False)), WIDTH)
    b = Plan((Layer(width=8), Layer(width=11), Layer(keep=False)), WIDTH)
    differing = [x for x, y in zip(a.to_json().splitlines(), b.to_json().splitlines(), strict=True) if x != y]
    assert [json.loads(line.rstrip(",")) for line in differing] == [{"width": 12}]


def test_table_shows_the_fields_that_are_set():
    plan = Plan((Layer(bits=8), Layer(bits=4), Layer(keep=False)), WIDTH)
    lines = repr(plan).splitlines()
    assert lines[0] == "Plan for 3 layers of width 16: mean slice 0.0%, average bits 6.00, 1 removed"
    assert [line.split() for line in lines[1:]] == [["layer", "keep", "bits"], ["0", "8"], ["1", "4"], ["2", "False"]]
    assert plan._repr_html_().count("<tr>") == 4
    spared = Plan((Layer(bits=4, outliers=0.1 / 3),), WIDTH)
    assert repr(spared).split()[-3:] == ["0", "4", "0.03333"]
    by_matrix = Plan((Layer(matrices={"q": 4, "v": 8, "k": 3}), Layer(bits=4)), WIDTH, embedding_bits=8, head_bits=6)
    lines = repr(by_matrix).splitlines()
    assert lines[0].endswith("mean slice 0.0%, embedding 8 bits, head 6 bits")
    assert lines[1].split() == ["layer", "bits", "matrices"]
    assert [line.split(maxsplit=1)[1].strip() for line in lines[2:]] == ["5.00 in 3 (3 to 8)", "4"]
    cut = Plan((Layer(width=8),), WIDTH, head=12)
    assert repr(cut).splitlines()[0] == "Plan for 1 layers of width 16: mean slice 50.0%, head 12"


def test_orders_that_know_nothing_have_the_values_of_the_score():
    score = np.array([0.3, -1.0, 2.0, 0.5])
    assert lw.plans.in_reverse(score).tolist() == [0.5, 2.0, -1.0, 0.3]
    drawn = lw.plans.shuffled(score, 3)
    assert sorted(drawn) == sorted(score) and np.array_equal(drawn, lw.plans.shuffled(score, 3))
    assert not np.array_equal(drawn, lw.plans.shuffled(score, 4))
