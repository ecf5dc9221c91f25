"""What a result is known by: everything that decides it, as plain data, and a key made of that.

Of a function or a class that a reader wrote its code counts, and that of whatever it calls of theirs, as cloudpickle
looks for what a function brings along; a docstring, a comment or another name don't. What an installed package has
counts by its name, and what this library has by its name and `COMPUTATION`: its arithmetic changes on purpose.
"""

import ast
import dataclasses
import dis
import functools
import hashlib
import inspect
import json
import sys
import sysconfig
import types
from collections.abc import Mapping, Set
from pathlib import Path

import numpy as np
import torch
from torch import nn

from layerwise.experiments.results import fingerprint
from layerwise.plans import Plan

# Raise it where a change of the library gives other results: scores, compression, quantization, evaluation. All results
# are then made anew. A change that gives the same ones, such as a faster way, leaves it.
COMPUTATION = 1

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
    it can't tell, such as a path, behind which a file may change, and for code whose source can't be read.
    """
    return _known(value, ())


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
        return {"model": fingerprint(value), "dtype": str(getattr(value, "dtype", None))}
    if isinstance(value, Mapping):
        pairs = [[_known(name, inside), _known(each, inside)] for name, each in value.items()]
        return {"map": sorted(pairs, key=json.dumps)}
    if isinstance(value, Set):
        return {"set": sorted((_known(each, inside) for each in value), key=json.dumps)}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return [_known(each, inside) for each in value]
    if isinstance(value, types.ModuleType):
        return _module(value)
    if isinstance(value, functools.partial):
        return {"partial": _known([value.func, value.args, value.keywords], inside)}
    if isinstance(value, types.MethodType):
        return {"method": _known([value.__self__, value.__func__], inside)}
    if callable(value) and hasattr(value, "__wrapped__"):
        code = getattr(value, "__code__", None)
        if code and not _is_installed(code.co_filename):  # of a decorator of the reader's, which brings what it wraps
            return _function(value, inside)
        return _known(value.__wrapped__, inside)  # such as functools.cache
    if isinstance(value, type) or inspect.isroutine(value):
        if _is_of_a_package(value) and "<locals>" not in value.__qualname__:  # those differ in what they close over
            return {"name": _public_name(value)}
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
    generated = {"__module__", "__doc__", "__qualname__", "__dict__", "__weakref__", "__annotations__", "__hash__"}
    generated |= {"__firstlineno__", "__static_attributes__", "__match_args__", "__annotate_func__", "__slots__"}
    body = {}
    for name, each in vars(value).items():
        if name in generated or name.startswith(("__dataclass", "__abstract", "_abc_")):
            continue
        if isinstance(each, (staticmethod, classmethod)):
            each = each.__func__
        if isinstance(each, property):
            each = [each.fget, each.fset]
        if isinstance(each, (types.MemberDescriptorType, types.GetSetDescriptorType)):  # of slots
            continue
        if _is_generated(each):
            continue
        body[name] = _known(each, inside)
    return {"bases": [_known(base, inside) for base in value.__bases__], "body": dict(sorted(body.items()))}


def _is_generated(value) -> bool:
    """Whether it is a method that `dataclass` made from the fields."""
    inner = inspect.unwrap(value) if callable(value) else value
    return inspect.isfunction(inner) and inner.__code__.co_filename == "<string>"


def _function(value, inside) -> Plain:
    """A function of a reader: its code, defaults, what it closes over, and what it takes from around it."""
    tree, code = _tree(value), value.__code__
    taken = {name: value.__globals__[name] for name in _globals_of(code) if name in value.__globals__}
    for decorator in getattr(tree, "decorator_list", []):
        names = {each.id for each in ast.walk(decorator) if isinstance(each, ast.Name)}
        taken |= {name: value.__globals__[name] for name in names if name in value.__globals__}
    for name, cell in zip(code.co_freevars, value.__closure__ or (), strict=True):
        try:
            taken[name] = cell.cell_contents
        except ValueError:  # not filled yet
            continue
    brought = {}
    for name, each in sorted(taken.items()):
        try:
            brought[name] = _known(each, inside)
        except ValueError as error:
            raise ValueError(f"{value.__qualname__} uses {name}: {error}") from error
    defaults = _known([value.__defaults__, value.__kwdefaults__], inside)
    return {"code": hashlib.sha256(_dump(tree).encode()).hexdigest()[:16], "defaults": defaults, "uses": brought}


def _globals_of(code: types.CodeType) -> set[str]:
    """Names that a code object, and those within it, read from the module around them."""
    names = {each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(_globals_of(each) for each in code.co_consts if isinstance(each, types.CodeType)))


def _tree(function) -> ast.AST:
    """The syntax tree of a function or lambda, found where its file or cell defines it."""
    try:
        lines, _ = inspect.findsource(function)
        parsed = ast.parse("".join(lines))
    except (OSError, TypeError, SyntaxError) as error:
        raise ValueError(
            f"the source of {function.__qualname__} can't be read, so a changed version of it couldn't be told from "
            "this one: define it in a notebook's cell or in a file"
        ) from error
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    first = function.__code__.co_firstlineno
    found = [each for each in ast.walk(parsed) if isinstance(each, kinds) and first in _starts(each)]
    is_lambda = function.__name__ == "<lambda>"
    found = [each for each in found if isinstance(each, ast.Lambda) == is_lambda]
    if is_lambda and len(found) > 1:  # several in a line
        found = [each for each in found if _compiled(each) == _signature(function.__code__)]
    if not found:
        raise ValueError(f"the source of {function.__qualname__} has changed since it was defined: run its cell again")
    return found[0]


def _starts(node) -> set[int]:
    return {node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))}


def _compiled(node: ast.Lambda) -> tuple:
    module = compile(ast.Expression(node), "<lambda>", "eval")
    return _signature(next(each for each in module.co_consts if isinstance(each, types.CodeType)))


def _signature(code: types.CodeType) -> tuple:
    plain = tuple(each for each in code.co_consts if not isinstance(each, types.CodeType))
    nested = tuple(_signature(each) for each in code.co_consts if isinstance(each, types.CodeType))
    return code.co_varnames, code.co_names, plain, nested, [(i.opname, i.argrepr) for i in dis.get_instructions(code)]


def _dump(node) -> str:
    """A syntax tree as text: without positions, docstrings, and the name of the function itself.

    `ast.dump` writes fields that are empty in some versions of Python and leaves them out in others.
    """
    named = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    return _written(node, skip=("name", "returns") if isinstance(node, named) else ())


def _written(node, skip=()) -> str:
    if isinstance(node, list):
        return "[" + ",".join(map(_written, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    body = getattr(node, "body", None)
    fields = []
    for name, value in ast.iter_fields(node):
        if name in (*skip, "ctx", "type_comment", "kind", "annotation") or value is None or value == []:
            continue
        if value is body and isinstance(body, list) and _is_docstring(body[0]):
            value = body[1:]
        fields.append(f"{name}={_written(value)}")
    return f"{type(node).__name__}({','.join(fields)})"


def _is_docstring(node) -> bool:
    constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return constant and isinstance(node.value.value, str)


def _module(module: types.ModuleType) -> Plain:
    """A module of a package by its name, one of the reader's by its syntax tree."""
    if _is_of_a_package(module):
        return {"name": module.__name__}
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    return {"module": hashlib.sha256(_written(tree).encode()).hexdigest()[:16]}


@functools.cache
def _installed_in() -> tuple[Path, ...]:
    folders = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple({*(folder.resolve() for folder in folders), Path(__file__).resolve().parents[1]})


def _is_of_a_package(value) -> bool:
    """Whether it comes with Python, an installed package or this library, rather than from the reader."""
    module = value if isinstance(value, types.ModuleType) else sys.modules.get(getattr(value, "__module__", None) or "")
    if module is None:
        return not isinstance(value, types.FunctionType)  # methods of built-in types have no module
    if module.__name__ == "__main__":
        return False
    file = getattr(module, "__file__", None)
    return file is None or _is_installed(file)


def _is_installed(file: str) -> bool:
    return any(Path(file).resolve().is_relative_to(folder) for folder in _installed_in())


def _public_name(value) -> str:
    """Where it is found: of this library the room doesn't count, which may change."""
    module = getattr(value, "__module__", None) or ""
    return f"{'layerwise' if module.split('.')[0] == 'layerwise' else module}.{value.__qualname__}"


def _shown(value) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
