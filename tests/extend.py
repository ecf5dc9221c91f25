"""Every chapter that a reader can extend, with a score and a quantizer of this script's own: `python tests/extend.py
[NAME ...]`, or `make test-extend`.

In each, an extension is put behind the cells with the tag `extension`, as a reader would edit them, and the chapter is
run at its smallest: the quick profile on the smallest embedded model, on short windows that no committed result has.
It is run once more with another body of the function that the score calls, once with another body of the one that the
quantizer calls, and once with another docstring of both. What must hold: results are computed the first time, some anew
after each edit of a body, and none after that of a docstring.
"""

import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import papermill
from layerwise.book.paths import chapters
from layerwise.book.paths import notebook_source as source
from layerwise.book.sync import read_notebook

ROOT = Path(__file__).parent.parent
TAG = "extension"
PARAMETERS = {"PROFILE": "quick", "MODELS": "embedded/6L", "LENGTH": 32}
SCORE = '''
def extension_helper(importance):
    """DOCSTRING"""
    return SCORE_FACTOR * importance


def extension_score(model, tokens):
    """Later blocks are more important, or less."""
    return extension_helper(np.arange(lw.shape(model).L))


SCORES["of a reader"] = extension_score
'''
QUANTIZER = '''
from layerwise.quantization import RTN


def extension_scale(weights):
    """DOCSTRING"""
    return (1 + 0.1 * QUANTIZER_FACTOR) * weights


class ExtensionQuantizer(RTN):
    def matrix(self, weights, bits):
        return super().matrix(extension_scale(weights), bits)


QUANTIZERS["of a reader"] = ExtensionQuantizer()
'''


def can_be_extended(name: str) -> bool:
    cells = read_notebook(source(ROOT, name)).cells
    return any(TAG in cell.metadata.get("tags", []) for cell in cells)


def extended(name: str, factors: dict[str, int], docstring: str):
    """The notebook with an extension behind each of its cells for them."""
    notebook = read_notebook(source(ROOT, name))
    for cell in notebook.cells:
        if TAG in cell.metadata.get("tags", []):
            for variable, code in added(cell.source).items():
                code = code.replace(f"{variable[:-1]}_FACTOR", str(factors[variable])).replace("DOCSTRING", docstring)
                cell.source += f"\n\n{code}"
    return notebook


def added(cell: str) -> dict[str, str]:
    """What a cell that says what SCORES or QUANTIZERS are gets behind it."""
    every = {"SCORES": SCORE, "QUANTIZERS": QUANTIZER}
    return {variable: code for variable, code in every.items() if re.search(rf"^{variable} = ", cell, re.MULTILINE)}


def results(name: str, folder: Path, factors: dict[str, int], docstring: str) -> set[str]:
    """The results that are there when the chapter was run."""
    papermill.execute_notebook(
        extended(name, factors, docstring),
        str(folder / "executed.ipynb"),
        parameters=PARAMETERS,
        kernel_name="python3",
        cwd=str(folder / "_build"),
        progress_bar=False,
    )
    return {path.stem for path in (folder / "_build" / "rows").glob("*.json")}


def check(name: str) -> None:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "_build").mkdir()
        (folder / "results").symlink_to(ROOT / "results")
        factors = {"SCORES": 1, "QUANTIZERS": 1}
        first = before = results(name, folder, factors, "A sentence.")
        assert first, f"{name}: nothing was computed"
        for variable in variables(name):
            factors[variable] = -1
            after = results(name, folder, factors, "A sentence.")
            assert after > before, f"{name}: an edit of what one of {variable} calls gave no other results"
            before = after
        again = results(name, folder, factors, "Another sentence.")
    anew = len(before) - len(first)
    assert anew <= len(first), f"{name}: more was computed anew than what the functions decide"
    assert again == before, f"{name}: another docstring had {len(again) - len(before)} results computed anew"
    told = f"{len(first)} results, {anew} anew after edits, none after one of a docstring"
    print(f"{name}: {told}, {time.perf_counter() - started:.0f} s", flush=True)


def variables(name: str) -> list[str]:
    """What a chapter lets a reader extend."""
    cells = read_notebook(source(ROOT, name)).cells
    found = [variable for cell in cells if TAG in cell.metadata.get("tags", []) for variable in added(cell.source)]
    assert found, f"{name} has no cell with the tag {TAG} that says what SCORES or QUANTIZERS are"
    return found


def main() -> None:
    """Check the chapters that are named, one after the other; all of them two at a time, each in a process."""
    if names := sys.argv[1:]:
        for name in names:
            check(name)
        return
    with ThreadPoolExecutor(2) as processes:
        command = [sys.executable, __file__]
        found = filter(can_be_extended, chapters(ROOT))
        failed = sum(processes.map(lambda name: subprocess.run([*command, name]).returncode != 0, found))
    sys.exit(f"{failed} chapters can't be extended as they should" if failed else 0)


if __name__ == "__main__":
    main()
