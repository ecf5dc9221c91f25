"""What a result is known by: everything that decides it, as plain data, and a key made of that.

Of a function or a class that a reader wrote its code counts, and that of whatever it calls of theirs, as cloudpickle
looks for what a function brings along; a docstring, a comment or another name don't. What an installed package has
counts by its name, and what this library has by its name and `COMPUTATION`: its arithmetic changes on purpose.
"""

import ast
import dataclasses
import functools
import hashlib
import inspect
import json
import types
from collections.abc import Mapping, Set
from pathlib import Path

import numpy as np
import torch
from torch import nn

from layerwise.experiments.results import fingerprint
from layerwise.experiments.source import (
    Changed,
    is_generated,
    is_of_a_package,
    is_public,
    is_wrapper,
    public_name,
    syntax_tree,
    taken_by,
    tree_text,
)
from layerwise.plans import Plan

# Raise it where a change of the library gives other results: scores, compression, quantization, evaluation. All results
# are then made anew. A change that gives the same ones, such as a faster way, leaves it.
COMPUTATION = 1

GENERATED = {"__module__", "__doc__", "__qualname__", "__dict__", "__weakref__", "__annotations__", "__hash__"}
GENERATED |= {"__firstlineno__", "__static_attributes__", "__match_args__", "__annotate_func__", "__slots__"}
WRITTEN_IN_PYTHON = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class whose instances have their state in what `vars` shows

Plain = None | bool | int | float | str | list | dict


def key(what: Mapping) -> str:
    """A name for what was computed: 20 hexadecimal digits of a hash over `known(what)` and `COMPUTATION`.

    Raises ValueError for a value that can't be told from others, such as an open file.
    """
    text = json.dumps([COMPUTATION, known(what)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def known(value) -> Plain:
    """`value` as data that JSON can hold, equal for values that compute the same, whatever the Python that runs it.

    Numbers, text and containers by what is in them, arrays and tensors by a hash of it, a plan by its layers, a model
    by its fingerprint and dtype, functions, classes and objects by the code that decides. Raises ValueError for what
    it can't tell, such as a path, behind which a file may change, for code whose source can't be read, and for code
    that was edited since it was loaded.
    """
    return _known(value, ())


def reached_code(function) -> Plain:
    """What a function does, as data: its code, and that of all functions and classes of a reader that it reaches.

    Unlike `known`, it leaves out the data that they take from around them, such as a log or the folder to write to.
    Raises ValueError for code whose source can't be read, or isn't what is loaded.
    """
    found, seen, todo = [], {}, [("", function)]
    while todo:
        name, each = todo.pop(0)
        if id(each) in seen:
            continue
        seen[id(each)] = each
        tells, inner = _code_and_what_it_reaches(each)
        found += [] if tells is None else [[name, tells]]
        todo += sorted(inner.items(), key=lambda pair: str(pair[0]))
    return found


def _code_and_what_it_reaches(value) -> tuple[Plain, dict]:
    """What tells a function, class or module, None for anything else, and by name what may have code beside it."""
    if isinstance(value, types.ModuleType):
        told = _module(value, ())
        return told.get("module", told), {}
    if is_wrapper(value):
        return None, {"": value.__wrapped__}
    if isinstance(value, types.FunctionType) and (hasattr(value, "__wrapped__") or not is_public(value)):
        tree = syntax_tree(value)
        return _hashed(tree), taken_by(value, tree)
    if isinstance(value, functools.partial):
        return None, {"": value.func, **dict(enumerate(value.args)), **value.keywords}
    if isinstance(value, types.MethodType):
        return None, {"": value.__func__, "self": type(value.__self__)}
    if isinstance(value, type) or inspect.isroutine(value):
        if is_public(value):
            return public_name(value), {}
        body = {name: _functions_of(each) for name, each in _body(value).items()}
        return None, body | dict(enumerate(value.__bases__))
    if isinstance(value, (list, tuple)):
        return None, dict(enumerate(value))
    if isinstance(value, Mapping):
        return None, dict(value)
    return None, {"": type(value)} if callable(value) or not is_of_a_package(type(value)) else {}


def _known(value, within: tuple) -> Plain:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    for at, each in enumerate(within):
        if value is each:  # it calls itself, or holds itself
            return {"again": at}
    inside = (*within, value)
    if isinstance(value, Plan):
        return {"plan": json.loads(value.to_json())}
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return _array(value)
    if isinstance(value, bytes):
        return {"bytes": hashlib.sha256(value).hexdigest()[:16]}
    if isinstance(value, (torch.dtype, torch.device)):
        return {"name": f"torch.{value}".replace("torch.torch.", "torch.")}
    if isinstance(value, nn.Module) and hasattr(value, "config"):  # another one by its class and what it holds
        told = {"model": fingerprint(value), "dtype": str(getattr(value, "dtype", None))}
        own = {type(each) for each in value.modules() if not is_of_a_package(type(each))}
        return told | ({"classes": _known(own, inside)} if own else {})
    if isinstance(value, Mapping):
        pairs = [[_known(name, inside), _known(each, inside)] for name, each in value.items()]
        return {"map": sorted(pairs, key=json.dumps)}
    if isinstance(value, Set):
        return {"set": sorted((_known(each, inside) for each in value), key=json.dumps)}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return [_known(each, inside) for each in value]
    if isinstance(value, types.ModuleType):
        return _module(value, inside)
    if isinstance(value, functools.partial):
        return {"partial": _known([value.func, value.args, value.keywords], inside)}
    if isinstance(value, types.MethodType):
        return {"method": _known([value.__self__, value.__func__], inside)}
    if is_wrapper(value):
        return _known(value.__wrapped__, inside)
    if isinstance(value, types.FunctionType) and hasattr(value, "__wrapped__"):
        return _function(value, inside)  # a wrapper of the reader's, which brings what it wraps
    if isinstance(value, type) or inspect.isroutine(value):
        if is_public(value):
            return {"name": public_name(value)}
        return _class(value, inside) if isinstance(value, type) else _function(value, inside)
    return _object(value, inside)


def _array(value) -> Plain:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous()
        of = [str(value.dtype).removeprefix("torch."), list(value.shape)]
        data = value.flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b""
    else:
        if value.dtype.hasobject:
            return _known(value.tolist(), ())
        of, data = [str(value.dtype), list(value.shape)], np.ascontiguousarray(value).tobytes()
    return {"array": [*of, hashlib.sha256(data).hexdigest()[:16]]}


def _object(value, inside) -> Plain:
    """An instance, by its class and what it holds."""
    if dataclasses.is_dataclass(value):
        held = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif hasattr(value, "_asdict"):
        held = value._asdict()
    elif type(value).__flags__ & WRITTEN_IN_PYTHON and hasattr(value, "__dict__"):
        held = vars(value)
    else:
        raise ValueError(
            f"{_shown(value)}, a {type(value).__name__}, can't be told from others of its kind, so a result that "
            "depends on it couldn't be found again: use numbers, text, arrays, functions or a dataclass of these"
        )
    return {"class": _known(type(value), inside), "holds": _known(held, inside)}


def _class(value: type, inside) -> Plain:
    """A class, by its bases and by what its body defines."""
    body = {name: _known(_functions_of(each), inside) for name, each in _body(value).items()}
    return {"bases": [_known(base, inside) for base in value.__bases__], "body": dict(sorted(body.items()))}


def _body(value: type) -> dict:
    """What the body of a class defines, without what Python or `dataclass` add to it."""
    slots = (types.MemberDescriptorType, types.GetSetDescriptorType)
    return {
        name: each
        for name, each in vars(value).items()
        if name not in GENERATED and not name.startswith(("__dataclass", "__abstract", "_abc_"))
        if not isinstance(each, slots) and not is_generated(_functions_of(each))
    }


def _functions_of(each):
    """What is behind a static method, a class method, or a property in the body of a class."""
    if isinstance(each, (staticmethod, classmethod)):
        return each.__func__
    return [each.fget, each.fset] if isinstance(each, property) else each


def _function(value, inside) -> Plain:
    """A function of a reader: its code, defaults, what it closes over, and what it takes from around it."""
    tree = syntax_tree(value)
    brought = {}
    for name, each in sorted(taken_by(value, tree).items()):
        try:
            brought[name] = _known(each, inside)
        except ValueError as error:
            raise type(error)(f"{value.__qualname__} uses {name}: {error}") from error
    defaults = _known([value.__defaults__, value.__kwdefaults__], inside)
    return {"code": _hashed(tree), "defaults": defaults, "uses": brought}


def _module(module: types.ModuleType, inside) -> Plain:
    """A module of a package by its name; one of the reader's by its syntax tree and by the data that it has loaded.

    The tree alone might be that of an edit that isn't loaded. Data that can't be told, such as a path, go by the tree.
    """
    if is_of_a_package(module):
        return {"name": module.__name__}
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    own = {name: each for name, each in vars(module).items() if not name.startswith("__")}
    return {"module": _hashed(tree), "holds": _data(own, module.__name__, inside)}


def _data(body: Mapping, module: str, inside) -> dict:
    """What a module or a class of it holds beside its code, which is checked to be what the module's file says."""
    held = {}
    for name, each in sorted(body.items()):
        each = inspect.unwrap(_functions_of(each))
        own = getattr(each, "__module__", None) == module
        try:
            if isinstance(each, types.FunctionType) and own:
                syntax_tree(each)
                closed_over = [cell.cell_contents for cell in each.__closure__ or ()]
                held[name] = _known([each.__defaults__, each.__kwdefaults__, closed_over], inside)
            elif isinstance(each, type) and own:
                within = any(each is other for other in inside)
                held[name] = None if within else _data(_body(each), module, (*inside, each))
            else:
                held[name] = _known(each, inside)
        except Changed:
            raise
        except ValueError:
            continue
    return held


def _hashed(tree: ast.AST) -> str:
    return hashlib.sha256(tree_text(tree).encode()).hexdigest()[:16]


def _shown(value) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
