"""Finished points of a sweep, a file each; files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

PARTIAL = ".partial"  # what a file is called while it is written


class StoreError(OSError):
    """Rows can't be written where they should be kept."""


class Store:
    """A folder of finished points; several processes may work with one, each file is put in place in one step."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def file(self, key: str) -> Path:
        """Where the rows of the point of that key are, or will be."""
        return self.folder / f"{key}.json"

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


def plain(value):
    """A NumPy value as what JSON can hold; raises TypeError for what it can't."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (np.ndarray, tuple)):
        return list(value)
    raise TypeError(f"{value!r} is a {type(value).__name__}, which a row can't hold: use numbers, text, lists or dicts")
