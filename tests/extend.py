"""Every chapter that a reader can extend, with a score and a quantizer of this script's own: `python tests/extend.py
[NAME ...]`, or `make test-extend`.

In each, an extension is put behind the cells with the tag `extension`, as a reader would edit them, and the chapter is
run at its smallest: the quick profile on the smallest embedded model, on short windows that no committed result has.
It is run once more with another body of the functions that the score and the quantizer call, and once with another
docstring. What must hold: results are computed for both the first and the second time, others the second time, and none
the third time.
"""

import sys
import tempfile
import time
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
    return FACTOR * importance


def extension_score(model, tokens):
    """Later blocks are more important, or less."""
    return extension_helper(np.arange(lw.shape(model).L))


SCORES["of a reader"] = extension_score
'''
QUANTIZER = '''
from layerwise.quantization import RTN


def extension_scale(weights):
    """DOCSTRING"""
    return (1 + 0.1 * FACTOR) * weights


class ExtensionQuantizer(RTN):
    def matrix(self, weights, bits):
        return super().matrix(extension_scale(weights), bits)


QUANTIZERS["of a reader"] = ExtensionQuantizer()
'''


def can_be_extended(name: str) -> bool:
    cells = read_notebook(source(ROOT, name)).cells
    return any(TAG in cell.metadata.get("tags", []) for cell in cells)


def extended(name: str, factor: int, docstring: str):
    """The notebook with an extension behind its cells for them."""
    notebook, added = read_notebook(source(ROOT, name)), 0
    for i in reversed(range(len(notebook.cells))):
        cell = notebook.cells[i]
        if TAG in cell.metadata.get("tags", []):
            for variable, code in {"SCORES": SCORE, "QUANTIZERS": QUANTIZER}.items():
                if f"{variable} = " in cell.source:
                    code = code.replace("FACTOR", str(factor)).replace("DOCSTRING", docstring)
                    cell.source += f"\n\n{code}"
                    added += 1
    assert added, f"{name} has no cell with the tag {TAG} that says what SCORES or QUANTIZERS are"
    return notebook


def results(name: str, folder: Path, factor: int, docstring: str) -> set[str]:
    """The results that are there when the chapter was run."""
    papermill.execute_notebook(
        extended(name, factor, docstring),
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
        first = results(name, folder, 1, "A sentence.")
        second = results(name, folder, -1, "A sentence.")
        third = results(name, folder, -1, "Another sentence.")
    assert first, f"{name}: nothing was computed"
    assert second > first, f"{name}: another body of a function gave no other results"
    assert len(second) < 2 * len(first), f"{name}: more was computed anew than what the functions decide"
    assert third == second, f"{name}: another docstring had {len(third) - len(second)} results computed anew"
    told = f"{len(first)} results, {len(second) - len(first)} anew after an edit, none after one of a docstring"
    print(f"{name}: {told}, {time.perf_counter() - started:.0f} s", flush=True)


def main() -> None:
    for name in sys.argv[1:] or filter(can_be_extended, chapters(ROOT)):
        check(name)


if __name__ == "__main__":
    main()
