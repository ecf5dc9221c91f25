"""Finished points of a sweep, a file each, under a name that says all that decides them; files that appear whole or not
at all."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np

PARTIAL = ".partial"  # what a file is called while it is written


class StoreError(OSError):
    """Rows can't be written where they should be kept."""


class Store:
    """A folder of finished points; several processes may work with one, each file is put in place in one step.

    `code` is the text of what turns points into rows. A file's name is a digest of it, of the point, and of the source
    of what computes in this library.
    """

    def __init__(self, folder, code: str):
        self.folder, self.code = Path(folder), code

    def file(self, point: Mapping) -> Path:
        """Where the rows of a point are, or will be."""
        text = json.dumps(point, sort_keys=True, default=_known_by)
        name = hashlib.sha256("\n".join([_library(), self.code, text]).encode()).hexdigest()[:32]
        return self.folder / f"{name}.json"

    def read(self, file: Path) -> list[dict] | None:
        """Rows of a finished point; None if there are none. A file that isn't whole is reported, and counts as none."""
        there = file.exists()  # asked first: another process may put it in place meanwhile
        rows = self.finished(file)
        if rows is None and there:
            warnings.warn(f"{file} is damaged: the rows of this point are computed anew", stacklevel=3)
        return rows

    def finished(self, file: Path) -> list[dict] | None:
        """As `read`, without a report."""
        try:
            rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # not there; no JSON; not what `write` writes
            return None
        return rows if isinstance(rows, list) and all(isinstance(row, dict) for row in rows) else None

    def write(self, file: Path, rows: list[dict], origin: Mapping) -> None:
        """Put the rows of a finished point in place, with their provenance; raises StoreError."""
        try:
            write_whole(file, json.dumps({"rows": rows, "provenance": origin}, indent=1, default=plain))
        except OSError as error:
            raise self._unwritable(error) from error

    def check_writable(self) -> None:
        """Raise StoreError if nothing can be written, which is better known before hours of work than after.

        Removes what killed processes have left half-written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(f".*{PARTIAL}"):
                with suppress(OSError):  # another process may have removed it
                    if time.time() - left.stat().st_mtime > 3600:  # no process is still at it
                        left.unlink()
            with tempfile.TemporaryFile(dir=self.folder) as file:
                file.write(b"rows")
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error):
        return StoreError(
            error.errno,
            f"rows can't be written to {self.folder}: {error.strerror or error}. What is finished is kept there; make "
            "room or choose another store, and the same sweep goes on with what is missing",
        )


def write_whole(path: Path, text: str) -> None:
    """All or nothing: the file appears under its name when every byte of it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp makes files that only their owner reads
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def source_text(function: Callable | None) -> str:
    """A text that changes when the function does."""
    if function is None:
        return ""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError) as error:
        raise ValueError(
            f"the source of {function!r} can't be read, so a changed version of it couldn't be told from this one: "
            "pass a function that is defined in a notebook cell or a file"
        ) from error


def _known_by(value):
    """What tells a field of a point from others: of a function its source, and the values that it brings along."""
    if not callable(value):
        return plain(value)
    if inspect.ismethod(value):
        raise ValueError(f"{value.__qualname__} belongs to an object, which its source doesn't tell: give a function")
    value = inspect.unwrap(value)  # from decorators such as torch.inference_mode(), as its source is
    cells = getattr(value, "__closure__", None) or ()
    try:
        closed = [cell.cell_contents for cell in cells]
        brought = [[each for each in closed if each is not value]]  # a function may call itself
        brought += [getattr(value, "__defaults__", None), getattr(value, "__kwdefaults__", None)]
        return [source_text(value), json.dumps(brought, sort_keys=True, default=_known_by)]
    except (TypeError, RecursionError) as error:
        raise ValueError(f"{value.__qualname__} brings along what a point can't hold: {error}") from error


def plain(value):
    """A NumPy value as what JSON can hold; raises TypeError for what it can't."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (np.ndarray, tuple)):
        return list(value)
    raise TypeError(f"{value!r} is a {type(value).__name__}, which a row can't hold: use numbers, text, lists or dicts")


@cache
def _library() -> str:
    """The sources of this library, but for those that only show what was computed; the items of its tasks too."""
    folder = Path(__file__).parents[1]
    shown = [folder / "figures", folder / "book", folder / "claims"]
    files = [*sorted(folder.rglob("*.py")), *sorted((folder / "world" / "tasks").glob("*.*l"))]
    files = [file for file in files if not any(file.is_relative_to(path) for path in shown)]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)
