"""A reader's code: the syntax tree of a function as it is loaded, what it takes from around it, and what is theirs."""

import __future__

import ast
import dis
import functools
import inspect
import linecache
import sys
import sysconfig
import types
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


class Changed(ValueError):
    """A file or cell holds other code now than what was loaded from it."""


def syntax_tree(function: types.FunctionType) -> ast.AST:
    """The tree of a function or lambda, found in its file or cell by the code that is loaded, on whatever line.

    Raises ValueError where the source can't be read; `Changed` where it doesn't compile to what is loaded, since
    results would then go by code that didn't make them.
    """
    code = function.__code__
    linecache.checkcache(code.co_filename)
    text = "".join(linecache.getlines(code.co_filename, function.__globals__))
    if not text:
        raise ValueError(
            f"the source of {function.__qualname__} can't be read, so a changed version of it couldn't be told from "
            "this one: define it in a notebook's cell or in a file"
        )
    try:
        parsed, codes = _compiled(text, code.co_flags & __future__.annotations.compiler_flag)
    except SyntaxError:
        codes = ()
    loaded = _signature(code)
    found = [each for each in codes if each.co_name == code.co_name and _signature(each) == loaded]
    if not found:
        raise Changed(
            f"the code of {function.__qualname__} that is loaded isn't what {Path(code.co_filename).name} holds now: "
            "run its cell again; reload its module and import from it again; or restart Python"
        )
    nearest = min(found, key=lambda each: abs(each.co_firstlineno - code.co_firstlineno))
    return _node(parsed, nearest)


@functools.lru_cache(maxsize=32)  # the functions of a file share it
def _compiled(text: str, flags: int) -> tuple[ast.AST, tuple[types.CodeType, ...]]:
    """The tree of a file or cell, and all code within it. Cells may await; a future import holds for later cells."""
    with warnings.catch_warnings(action="ignore"):  # they were shown when it was loaded
        whole = compile(text, "<source>", "exec", flags | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        return ast.parse(text), tuple(_codes_in(whole))


def _codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield each
            yield from _codes_in(each)


def _signature(code: types.CodeType) -> tuple:
    """What a code object does: not its lines, and not its docstring, which no instruction loads."""
    nested = tuple(_signature(each) for each in code.co_consts if isinstance(each, types.CodeType))
    starred = code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)
    arguments = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, starred)
    instructions = [(each.opname, _argument(each)) for each in dis.get_instructions(code)]
    return arguments, code.co_varnames, nested, instructions


def _argument(instruction: dis.Instruction):
    if isinstance(instruction.argval, types.CodeType):  # its text has an address
        return ""
    # As text, by which 1 and 1.0 differ; but not sets, whose order differs from one to an equal one.
    return instruction.argval if isinstance(instruction.argval, frozenset) else instruction.argrepr


def _node(parsed: ast.AST, code: types.CodeType) -> ast.AST:
    """Where the code of a function stands in the tree that it was compiled from."""
    there = [each for each in ast.walk(parsed) if isinstance(each, FUNCTIONS) and _first(each) == code.co_firstlineno]
    if code.co_name != "<lambda>":
        return next(each for each in there if not isinstance(each, ast.Lambda))
    there = [each for each in there if isinstance(each, ast.Lambda)]
    there = [each for each in there if len(there) == 1 or _holds(each.body, code)]
    if not there:  # Python was told to keep no columns
        raise ValueError(f"several lambdas begin in the same line, {code.co_firstlineno}: give each a line of its own")
    return max(there, key=lambda each: (each.body.lineno, each.body.col_offset))  # the innermost


def _first(node) -> int:
    return min(each.lineno for each in [node, *getattr(node, "decorator_list", [])])


def _holds(body: ast.expr, code: types.CodeType) -> bool:
    """Whether the code that was made of an expression may be this one, by where its instructions stand."""
    start, end = (body.lineno, body.col_offset), (body.end_lineno, body.end_col_offset)
    spans = [each for each in code.co_positions() if None not in each and each[3] > 0]  # what begins and ends has none
    return bool(spans) and all(start <= (line, column) and (last, to) <= end for line, last, column, to in spans)


def tree_text(node) -> str:
    """A syntax tree as text: without positions, docstrings, annotations, and the name of the function itself.

    `ast.dump` writes fields that are empty in some versions of Python and leaves them out in others.
    """
    return _written(node, skip=("name", "returns") if isinstance(node, FUNCTIONS) else ())


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


def taken_by(function, tree) -> dict:
    """What the code of a function takes from around it, by name: globals, also of its decorators, and what it closes
    over."""
    code, around = function.__code__, function.__globals__
    names = _globals_of(code)
    for decorator in getattr(tree, "decorator_list", []):
        names |= {each.id for each in ast.walk(decorator) if isinstance(each, ast.Name)}
    taken = {name: around[name] for name in names if name in around}
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # not filled yet
            taken[name] = cell.cell_contents
    return taken


def _globals_of(code: types.CodeType) -> set[str]:
    """Names that a code object, and those within it, read from the module around them."""
    names = {each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(_globals_of(each) for each in code.co_consts if isinstance(each, types.CodeType)))


def is_generated(value) -> bool:
    """Whether it is a method that `dataclass` made from the fields."""
    inner = inspect.unwrap(value) if callable(value) else value
    return inspect.isfunction(inner) and inner.__code__.co_filename == "<string>"


@functools.cache
def _installed_in() -> tuple[Path, ...]:
    folders = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple({*(folder.resolve() for folder in folders), Path(__file__).resolve().parents[1]})


def is_of_a_package(value) -> bool:
    """Whether it comes with Python, an installed package or this library, rather than from the reader."""
    module = value if isinstance(value, types.ModuleType) else sys.modules.get(getattr(value, "__module__", None) or "")
    if module is None:
        return not isinstance(value, types.FunctionType)  # methods of built-in types have no module
    if module.__name__ == "__main__":
        return False
    file = getattr(module, "__file__", None)
    return file is None or is_installed(file)


def is_installed(file: str) -> bool:
    """Whether a file is one of Python, of an installed package or of this library."""
    return any(Path(file).resolve().is_relative_to(folder) for folder in _installed_in())


def is_wrapper(value) -> bool:
    """Whether a package put it around a function, as functools.cache does, and has its attribute `__wrapped__`."""
    if not (callable(value) and hasattr(value, "__wrapped__")):
        return False
    code = getattr(value, "__code__", None)
    return is_installed(code.co_filename) if code else is_of_a_package(type(value))


def is_public(value) -> bool:
    """Whether a function or class is told by its name; those made within a function differ in what they close over."""
    return is_of_a_package(value) and "<locals>" not in value.__qualname__


def public_name(value) -> str:
    """Where it is found: of this library the room doesn't count, which may change."""
    module = getattr(value, "__module__", None) or ""
    return f"{'layerwise' if module.split('.')[0] == 'layerwise' else module}.{value.__qualname__}"
