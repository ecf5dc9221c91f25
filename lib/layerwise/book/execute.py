"""Execute a notebook with papermill, only when something that it depends on has changed."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import papermill
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from .paths import notebook_source
from .sync import read_notebook

CACHES = {"__pycache__", ".ipynb_checkpoints"}
UNFINISHED = "unfinished"  # folder of `_build/` where the copy of a notebook stays that did not run to its end
FIGURES = "figures"  # the folder of `results/` that is written for readers and that no chapter reads


class Executed(NamedTuple):
    """An executed notebook: where it is, whether it ran just now, and the seconds that its run took."""

    path: Path
    ran: bool
    seconds: float


class NotebookError(Exception):
    """A notebook that did not run to its end; the message says where it stopped and what to look at."""


def dependencies(root: Path, name: str) -> Iterator[Path]:
    """Every file that the outputs of a notebook depend on: its text, the library with its data, rows, versions.

    The book's own machinery is left out, except for what notebooks import from it, and so are results that none reads.
    """
    yield notebook_source(root, name)
    if (root / "constraints.txt").is_file():
        yield root / "constraints.txt"
    machinery = root / "lib" / "layerwise" / "book"
    figures = root / "results" / FIGURES
    for folder in (root / "lib" / "layerwise", root / "results"):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not CACHES.intersection(path.parts) and figures not in path.parents:
                if machinery not in path.parents or path.name == "__init__.py":
                    yield path


def notebook_fingerprint(root: Path, name: str, parameters: dict) -> str:
    """A hash over the names and contents of all dependencies and the parameters."""
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode())
    for path in dependencies(root, name):
        digest.update(f"\n{path.relative_to(root)}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def execute(root: Path, name: str, parameters: dict | None = None, folder: str = "executed") -> Executed:
    """Execute `notebooks/NAME.md` into `_build/FOLDER/NAME.ipynb` and return it, or the copy that is still good.

    The working directory is `_build/`, beside `notebooks/`, so that `../results` means the same folder in JupyterLab.
    The copy and then its fingerprint are put in place only after the last cell, so an interrupted run is run again and
    a finished one is not. Raises NotebookError where a cell fails; the copy up to there stays in `_build/unfinished/`.
    """
    parameters = parameters or {}
    build = root / "_build"
    done, record = build / folder / f"{name}.ipynb", build / folder / f"{name}.json"
    key = notebook_fingerprint(root, name, parameters)
    if done.is_file() and record.is_file():
        last = json.loads(record.read_text(encoding="utf-8"))
        if last["fingerprint"] == key:
            return Executed(done, False, last["seconds"])
    running = build / UNFINISHED / f"{name}.ipynb"
    for path in (done, running):
        path.parent.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    start = time.perf_counter()
    run_notebook(root, name, parameters, running)
    seconds = round(time.perf_counter() - start, 1)
    os.replace(running, done)
    record.write_text(json.dumps({"fingerprint": key, "seconds": seconds}) + "\n", encoding="utf-8")
    return Executed(done, True, seconds)


def ask(root: Path, name: str, expression: str) -> str:
    """Run a notebook and print an expression behind its last cell; returns the text. Raises NotebookError."""
    output = root / "_build" / UNFINISHED / f"{name}.ipynb"
    output.parent.mkdir(parents=True, exist_ok=True)
    executed = run_notebook(root, name, {}, output, then=f"print({expression})")
    output.unlink()
    return "".join(each.text for each in executed.cells[-1].outputs if each.output_type == "stream")


def run_notebook(root: Path, name: str, parameters: dict, output: Path, then: str = "") -> NotebookNode:
    """Run all cells, and `then` one more, into `output` with this interpreter's own kernel; raises NotebookError."""
    # A kernel that the user once installed under the same name would be another environment's Python.
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    notebook = read_notebook(notebook_source(root, name))
    if then:
        notebook.cells.append(new_code_cell(then))
    try:
        executed = papermill.execute_notebook(
            notebook,
            str(output),
            parameters=parameters,
            kernel_name="python3",
            cwd=str(root / "_build"),
            extra_arguments=["--log-level=ERROR"],
        )
    except papermill.PapermillExecutionError as error:
        line = next((line for line in error.source.splitlines() if line.strip()), "")
        raise NotebookError(
            f"notebooks/{name}.md, cell {error.cell_index} ({line.strip()}): {error.ename}: {error.evalue}\n"
            f"The executed copy, with the traceback, is {output.relative_to(root)}"
        ) from error
    except DeadKernelError as error:
        raise NotebookError(
            f"notebooks/{name}.md: its kernel died, most often for lack of memory.\n"
            f"The executed copy is {output.relative_to(root)}"
        ) from error
    # papermill notes the paths and times of this machine, which readers of the page should not download.
    executed.metadata.pop("papermill", None)
    for cell in executed.cells:
        cell.metadata.pop("papermill", None)
    papermill.iorw.write_ipynb(executed, str(output))
    return executed
