"""Local files of text and of JSON lines, read as UTF-8 or refused with the place that isn't."""

from __future__ import annotations

import json
from pathlib import Path


def read_text(path: Path) -> str:
    """The text of a file, without the byte order mark that some programs begin UTF-8 with.

    Raises ValueError for other encodings, with the first byte that isn't UTF-8 and its position in the file.
    """
    try:
        return path.read_text(encoding="utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at position {error.start}. Convert it, as by "
            "`iconv -f latin1 -t utf-8` if it is Latin-1"
        ) from error


def json_lines(path: Path) -> list[tuple[int, dict]]:
    """The objects of a file of JSON lines, each with the number of its line; blank lines are skipped.

    Raises ValueError for a line that is no JSON object, and where `read_text` does.
    """
    lines = enumerate(read_text(path).split("\n"), start=1)
    return [(number, _object(line, f"{path}, line {number}")) for number, line in lines if line.strip()]


def _object(line: str, where: str) -> dict:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{where} is not a JSON object, but {type(found).__name__}")
    return found
