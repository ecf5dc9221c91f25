"""Stage the book under `_build/stage` and build its pages with Jupyter Book."""

import subprocess
import sys
from pathlib import Path

from . import explore, planner, play
from .execute import execute
from .paths import chapters
from .shown import keep, named_figures
from .sync import sync


class BuildError(Exception):
    """The pages could not be built as they should be."""


def stage(root: Path, executed: dict[str, Path]) -> Path:
    """Make `_build/stage` hold exactly the configuration, the prose, the executed notebooks, their named figures, and
    what the planner, the model to play with and the figures to explore compute with.

    `executed` maps a chapter's name to its executed copy, which takes the path of its notebook in the repository:
    launch buttons are made from that path. Files that did not change are left alone, so that only changed pages are
    built. Returns the folder.
    """
    folder = root / "_build" / "stage"
    files = {folder / name: root / name for name in ("_config.yml", "_toc.yml")}
    files |= {folder / path.relative_to(root): path for path in (root / "book").rglob("*") if path.is_file()}
    files |= {folder / "notebooks" / f"{name}.ipynb": path for name, path in executed.items()}
    contents = {target: origin.read_bytes() for target, origin in files.items()}
    for path in executed.values():
        contents |= {folder / "figures" / f"{name}.png": image for name, image in named_figures(path).items()}
    if (root / "book" / "planner.md").is_file():
        contents[folder / planner.SCRIPT] = planner.script(root).encode()
    if (root / "book" / "play.md").is_file():
        contents[folder / play.SCRIPT] = play.data_script().encode()
        contents[folder / play.WEIGHTS_SCRIPT] = play.weights_script().encode()
    if (root / "book" / "explore.md").is_file():
        contents[folder / explore.SCRIPT] = explore.explore_script(root).encode()
        contents[folder / explore.VEGA_SCRIPT] = explore.vega_script().encode()
    for target, content in contents.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.is_file() or target.read_bytes() != content:
            target.write_bytes(content)
    for path in folder.rglob("*"):
        if path.is_file() and path not in contents:
            path.unlink()
    return folder


def build(root: Path) -> Path:
    """Execute the chapters that changed, have notebooks show it, build all pages, and return the path of the first one.

    Raises NotebookError for a chapter that fails and BuildError where Jupyter Book warns of anything.
    """
    executed = {}
    for name in chapters(root):
        print(f"notebooks/{name}", flush=True)
        result = execute(root, name)
        executed[name] = result.path
        print(
            "  executed in" if result.ran else "  up to date, executed before in", f"{result.seconds:.0f} s", flush=True
        )
        keep(root, name, result.path)
    for path in sync(root):
        print(f"wrote {path}, which shows results", flush=True)
    folder = stage(root, executed)
    # --all, because a page that is skipped as unchanged would take its warnings along.
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(folder)]
    command += ["--path-output", str(root), "--all", "--quiet", "--warningiserror", "--keep-going"]
    result = subprocess.run(command, cwd=root, text=True, capture_output=True)
    if result.returncode:
        raise BuildError(f"Jupyter Book did not build the pages cleanly:\n{(result.stdout + result.stderr).strip()}")
    return root / "_build" / "html" / "index.html"
