"""What a committed notebook shows before a cell of it has run: values and key figure of the last build.

Colab and GitHub know no glue. So the build keeps what each notebook has glued in `notebooks/shown/NAME.json`, and the
figures that its text places with the directive `glue:figure`, or README by their path, in `notebooks/shown/FIGURE.png`;
`sync` writes them into the notebook. They are committed, so that this takes no run.
"""

import ast
import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from . import RECORD
from .paths import notebook_source, write_if_changed

KEY_FIGURE = re.compile(r"^```\{glue:figure\} (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IN_README = re.compile(r"notebooks/shown/([\w-]+)\.png")
SHADES = 128  # plots have few colours; a palette makes the file a third


def outputs(executed: Path) -> Iterator[tuple[dict, str | None, dict]]:
    """Every output of an executed notebook that has data: its cell, the name it was recorded under if any, the data."""
    for cell in json.loads(executed.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            name = output.get("metadata", {}).get("scrapbook", {}).get("name")
            yield cell, name, {kind: "".join(data) for kind, data in output.get("data", {}).items()}


def named_figures(executed: Path) -> dict[str, bytes]:
    """The PNG of every figure with a name of an executed notebook: `mystnb: figure: name` of its cell, or as glued.

    Prose pages show them as `../figures/NAME.png`: a live figure on a page that isn't a notebook, with its own caption.
    """
    figures = {}
    for cell, glued, data in outputs(executed):
        of_cell = cell["metadata"].get("mystnb", {}).get("figure", {}).get("name")
        name, kind = (glued, RECORD + "image/png") if glued else (of_cell, "image/png")
        if name and kind in data:
            figures[name] = base64.b64decode(data[kind])
    return figures


def glued_values(executed: Path) -> dict[str, str | int | float]:
    """Every number and text of an executed notebook by the name that it was glued under; the last one of a name."""
    values = {}
    for _, name, data in outputs(executed):
        if name and set(data) == {RECORD + "text/plain"}:
            text = data[RECORD + "text/plain"]
            try:
                values[name] = ast.literal_eval(text)
            except (SyntaxError, ValueError):  # nan, say, which is shown as it is printed
                values[name] = text
    return values


def keep(root: Path, name: str, executed: Path) -> list[Path]:
    """Keep what an executed copy of a notebook has glued, and the figures that are shown; returns the files written."""
    folder = root / "notebooks" / "shown"
    folder.mkdir(exist_ok=True)
    values = json.dumps(glued_values(executed), indent=1, ensure_ascii=False) + "\n"
    files = {folder / f"{name}.json": values.encode()}
    shown = shown_figures(root, name)
    for figure, png in named_figures(executed).items():
        if figure in shown:
            files[folder / f"{figure}.png"] = small(png)
    return [path for path, content in files.items() if write_if_changed(path, content)]


def shown_figures(root: Path, name: str) -> set[str]:
    """Names of the figures that the text of a notebook places, and of those of any notebook that README shows."""
    placed = KEY_FIGURE.findall(notebook_source(root, name).read_text(encoding="utf-8"))
    readme = root / "README.md"
    in_readme = IN_README.findall(readme.read_text(encoding="utf-8")) if readme.is_file() else []
    return {figure for figure, _ in placed} | set(in_readme)


def small(png: bytes) -> bytes:
    """The same picture by a palette of few colours."""
    written = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(SHADES).save(written, "PNG", optimize=True)
    return written.getvalue()


def kept_values(root: Path, name: str) -> dict[str, str | int | float]:
    """What a notebook glued in the last build; empty for one that was never built."""
    path = root / "notebooks" / "shown" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def kept_figure(root: Path, figure: str) -> bytes | None:
    """The PNG of a key figure as of the last build; None for one that was never built."""
    path = root / "notebooks" / "shown" / f"{figure}.png"
    return path.read_bytes() if path.is_file() else None
