"""What results are known by: an edit of what decides changes it, an edit of anything else doesn't."""

import functools
import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path

import layerwise as lw
import numpy as np
import pytest
import torch
from families import tiny
from layerwise.experiments.known import key, known, reached_code
from layerwise.quantization import GPTQ, RTN

ENVIRONMENT = os.environ | {"PYTHONHASHSEED": "1"}
number = itertools.count()


@pytest.fixture
def module(tmp_path):
    """A reader's module, from its text."""

    def make(text):
        name = f"readers_{next(number)}"
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(name, path)
        made = importlib.util.module_from_spec(spec)
        sys.modules[name] = made
        spec.loader.exec_module(made)
        return made

    before = set(sys.modules)
    yield make
    for name in set(sys.modules) - before:
        if name.startswith("readers_"):
            del sys.modules[name]


SCORE = '''
import functools
import numpy as np
import layerwise as lw

POWER = 2

def helper(x):
    """What it does."""
    return x ** POWER  # a comment

def score(model, tokens, scale=1.0):
    """Importance."""
    return scale * helper(lw.scores.lim(model, tokens))
'''


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x ** POWER", "x ** POWER + 1"),  # what it calls
        ("POWER = 2", "POWER = 3"),  # a number from around it
        ("scale=1.0", "scale=2.0"),  # a default
        ("scale * helper", "-scale * helper"),  # its own body
        ("lw.scores.lim", "lw.scores.zd"),  # another function of this library
    ],
)
def test_what_decides_a_score_changes_what_it_is_known_by(module, before, after):
    assert before in SCORE
    assert known(module(SCORE).score) != known(module(SCORE.replace(before, after)).score)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"""Importance."""', '"""Another sentence."""'),
        ('    """What it does."""\n', ""),
        ("  # a comment", ""),
        ("def score(", "\n\n\ndef score("),
        ("scale * helper(lw", "scale * helper(\n        lw"),
        ("(model, tokens, scale=1.0)", "(model, tokens, scale: float = 1.0) -> 'array'"),
        ("import functools", "import functools, math"),
    ],
)
def test_what_decides_nothing_leaves_it(module, before, after):
    assert before in SCORE
    assert known(module(SCORE).score) == known(module(SCORE.replace(before, after)).score)


def test_a_renamed_function_keeps_its_results(module):
    renamed = module(SCORE.replace("def score", "def importance"))
    assert known(module(SCORE).score) == known(renamed.importance)


QUANTIZER = '''
from dataclasses import dataclass
from layerwise.quantization import RTN

def levels(bits):
    return 2 ** bits

@dataclass(frozen=True)
class Mine(RTN):
    """A quantizer."""
    clip: float = 0.9

    def matrix(self, weights, bits):
        """Rounds."""
        return super().matrix(weights * self.clip, levels(bits))

    @staticmethod
    def other():
        return 1
'''


def test_a_quantizer_is_known_by_its_settings_and_by_all_code_of_its_class(module):
    first = module(QUANTIZER).Mine()
    assert known(first) == known(module(QUANTIZER).Mine())
    assert known(first) != known(module(QUANTIZER).Mine(clip=0.8))
    for before, after in [("2 ** bits", "2 ** bits - 1"), ("* self.clip", "/ self.clip"), ("return 1", "return 2")]:
        assert known(first) != known(module(QUANTIZER.replace(before, after)).Mine()), before
    assert known(first) == known(module(QUANTIZER.replace("Rounds.", "Rounds them.")).Mine())


def test_built_in_quantizers_are_told_apart_by_class_and_settings():
    assert known(RTN()) == known(RTN(group=64)) != known(RTN(group=32)) != known(GPTQ())


def test_several_lambdas_of_one_line_are_told_apart(module):
    made = module("both = {'a': lambda m, t: m + 1, 'b': lambda m, t: m + 2}\n")
    other = module("both = {'a': lambda m, t: m + 1, 'b': lambda m, t: m + 3}\n")
    assert known(made.both["a"]) == known(other.both["a"]) != known(made.both["b"]) != known(other.both["b"])


def test_decorators_partials_closures_and_methods(module):
    text = """
import functools

def doubled(f):
    @functools.wraps(f)
    def wrapper(*args):
        return 2 * f(*args)
    return wrapper

@functools.cache
def cached(x): return x

@doubled
def decorated(x): return x

def powered(f, n):
    @functools.wraps(f)
    def wrapper(*args):
        return f(*args) ** n
    return wrapper

def closing(n):
    def inner(x): return x + n
    return inner

class Holder:
    def __init__(self, n): self.n = n
    def score(self, model, tokens): return self.n

def itself(n): return itself(n - 1) if n else 0
"""
    one = module(text)
    assert known(one.cached) == known(module(text).cached)
    assert known(one.decorated) != known(module(text.replace("2 * f", "3 * f")).decorated)
    assert known(one.closing(1)) != known(one.closing(2))
    powers = [known(one.powered(lw.scores.lim, n)) for n in (2, 3)]
    assert powers[0] != powers[1] and known(lw.scores.lim) not in powers
    assert known(one.closing(1)) == known(module(text).closing(1))
    assert known(one.Holder(1).score) != known(one.Holder(2).score)
    assert known(functools.partial(one.cached, 1)) != known(functools.partial(one.cached, 2))
    assert known(one.itself) == known(module(text).itself)


def edit(module, before, after):
    """As an editor does, with Python running on."""
    file = Path(module.__file__)
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))


@pytest.mark.parametrize(("before", "after"), [("x ** POWER", "x ** -POWER"), ("scale * helper", "scale + helper")])
def test_an_edit_that_is_not_loaded_is_an_error_until_it_is(module, before, after):
    made, edited = module(SCORE), module(SCORE.replace(before, after))
    loaded = known(made.score)
    edit(made, before, after)
    for tells in (known, reached_code):
        with pytest.raises(ValueError, match=rf"that is loaded isn't what {made.__name__}.py holds now: .*restart"):
            tells(made.score)
    exec(compile(Path(made.__file__).read_text(), made.__file__, "exec"), vars(made))  # reloaded
    assert known(made.score) == known(edited.score) != loaded


def test_an_edit_elsewhere_in_the_file_changes_nothing(module):
    made = module(SCORE)
    loaded = known(made.score)
    edit(made, "POWER = 2", "POWER = 3")  # it isn't loaded
    edit(made, "import functools", "import functools\n\n\ndef score_(): return 1")
    edit(made, '"""What it does."""', '"""What is done."""')
    assert known(made.score) == loaded
    edit(made, "def helper", "def helper_(x:\n\ndef helper")
    with pytest.raises(ValueError, match="isn't what"):
        known(made.score)


def test_a_module_of_the_reader_is_known_by_what_is_loaded(module):
    inner = module("POWER = 2\n\nclass Rule:\n    base = 1\n\n    def use(self, x, scale=1): return scale * x\n")
    text = f"import {inner.__name__} as inner\nLOG = open\n\ndef score(model, tokens): return inner.POWER\n"
    made = module(text)
    loaded = known(made.score)
    assert known(module(text).score) == loaded
    for name, value in {"POWER": 3, "extra": 1}.items():
        setattr(inner, name, value)
        assert known(made.score) != loaded
        setattr(inner, name, 2) if name == "POWER" else delattr(inner, name)
    assert known(made.score) == loaded
    inner.Rule.base = 2
    assert known(made.score) != loaded
    inner.Rule.base = 1
    edit(inner, "scale * x", "scale + x")
    with pytest.raises(ValueError, match="code of Rule.use that is loaded"):
        known(made.score)


def test_the_code_alone_of_a_function_is_that_of_all_it_reaches(module):
    text = (
        SCORE
        + """
LOG = []
KINDS = {"first": helper}

class Rule:
    weight = 1

    def __call__(self, x): return x + self.weight

rule = Rule()

def run(point):
    LOG.append(point)
    return KINDS[point](1) + rule(2) + score(None, None)
"""
    )
    made = module(text)
    before = reached_code(made.run)
    made.LOG.append(open(os.devnull))  # known would not tell it
    assert reached_code(made.run) == before == reached_code(module(text.replace("POWER = 2", "POWER = 3")).run)
    for old, new in [("x ** POWER", "x"), ("x + self.weight", "x"), ("LOG.append(point)", "pass"), ("scale * h", "h")]:
        assert old in text and reached_code(module(text.replace(old, new)).run) != before
    with_score, with_helper = (functools.partial(made.run, each) for each in (made.score, made.helper))
    assert reached_code(with_score) != reached_code(with_helper)


def test_functions_that_a_package_makes_are_told_apart():
    kinds = [lw.damage._maker(lambda block, n=n: n, None) for n in (1, 2)]  # closures of this library
    assert known(kinds[0]) != known(kinds[1])


def test_arrays_tensors_and_plans_by_what_is_in_them():
    shape_like = lw.Plan((lw.Layer(bits=4), lw.Layer(bits=2)), 8)
    assert known(torch.arange(6)) == known(torch.arange(6)) != known(torch.arange(6).reshape(2, 3))
    assert known(torch.zeros(2)) != known(torch.zeros(2, dtype=torch.float64))
    assert known(np.ones(2)) != known(np.zeros(2))
    assert known(shape_like) != known(lw.Plan((lw.Layer(bits=2), lw.Layer(bits=4)), 8))
    assert known({"a": 1, "b": 2}) != known({"a": 1, "b": 3})


def test_a_key_is_the_same_in_every_process():
    what = {"model": "0123", "plan": lw.Plan((lw.Layer(bits=4),), 8), "quantizer": RTN(), "score": lw.scores.lim}
    assert key(what) == key(dict(reversed(what.items())))
    code = (
        "import layerwise as lw; from layerwise.experiments.known import key; from layerwise.quantization import RTN\n"
        "plan = lw.Plan((lw.Layer(bits=4),), 8)\n"
        "print(key({'model': '0123', 'plan': plan, 'quantizer': RTN(), 'score': lw.scores.lim}))"
    )
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert again.stdout.strip() == key(what)


def test_what_cannot_be_told_is_an_error_that_names_it(module, tmp_path):
    made = module("import io\nfile = io.StringIO()\ndef score(model, tokens): return file.read()\n")
    with pytest.raises(ValueError, match="score uses file: .*StringIO.*can't be told"):
        known(made.score)
    scope = {}
    exec("def unseen(x): return x", scope)
    scope["unseen"].__module__ = "__main__"
    with pytest.raises(ValueError, match="source of unseen can't be read"):
        known(scope["unseen"])


def test_types_and_bytes_by_what_they_are():
    assert known(torch.float16) == known(torch.float16) != known(torch.bfloat16)
    assert known(torch.device("cpu")) != known(torch.device("meta"))
    assert known(b"abc") == known(b"abc") != known(b"abd")
    assert len({str(known(each)) for each in (b"abc", "abc", torch.float16, "torch.float16")}) == 4


def test_a_path_behind_which_a_file_may_change_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="can't be told from others of its kind"):
        known(tmp_path)


def test_modules_without_a_configuration_by_their_code_and_what_they_hold(module):
    text = """
from torch import nn

class Net(nn.Module):
    def __init__(self, slope=0.0):
        super().__init__()
        self.linear, self.slope = nn.Linear(2, 2), slope
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x):
        return self.slope * self.linear(x)
"""
    net = module(text).Net
    assert known(net()) == known(net()) == known(module(text).Net()) != known(net(0.1))
    assert known(net()) != known(module(text.replace("self.slope * ", "")).Net())
    other = net()
    other.linear.weight.data[0, 0] = 1
    assert known(other) != known(net())
    assert known(torch.nn.ReLU()) == known(torch.nn.ReLU()) != known(torch.nn.Tanh())


def test_a_model_of_a_readers_class_by_its_code_too(module):
    text = """
from transformers import LlamaForCausalLM

class Mine(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)
"""
    model = tiny()
    first, other = (module(each).Mine for each in (text, text.replace("return super()", "return 2 * super()")))
    told = []
    for kind in (type(model), first, first, other):
        model.__class__ = kind
        told.append(known(model))
    assert told[0] != told[1] == told[2] != told[3]


def test_models_by_their_weights():
    model = lw.load("embedded/6L", device="cpu")[0]
    before = known(model)
    assert known(lw.load("embedded/6L", device="cpu")[0]) == before
    next(model.parameters()).data[0, 0] += 1
    assert known(model) != before
