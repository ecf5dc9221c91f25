"""What results are known by: an edit of what decides changes it, an edit of anything else doesn't."""

import functools
import importlib.util
import itertools
import os
import subprocess
import sys

import layerwise as lw
import numpy as np
import pytest
import torch
from layerwise.experiments.known import key, known
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


def test_models_by_their_weights():
    model = lw.load("embedded/6L", device="cpu")[0]
    before = known(model)
    assert known(lw.load("embedded/6L", device="cpu")[0]) == before
    next(model.parameters()).data[0, 0] += 1
    assert known(model) != before
