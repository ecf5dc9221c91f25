"""The book: notebooks executed with papermill, pages built with Jupyter Book, and what notebooks need to take part.

`python -m layerwise.book` is the command line. What a notebook imports from here (`glue`, `glue_figure`, `machine`,
`offer`) works on a bare Colab as well: it needs IPython and nothing of the book's own tools.
"""

import base64
import html
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

# The prefix that myst-nb gives to a value that is recorded in the notebook but not displayed.
RECORD = "application/papermill.record/"


def glue(name: str, value: object) -> None:
    """Record `value` under `name`, so that the text of the page can show it with MyST's `glue` role.

    NumPy and torch scalars are recorded as Python numbers, so that a format in the role applies to them. Where the
    notebook is not part of a built book (Colab, JupyterLab) the printed line is what the reader sees; in the book
    the cell carries the tag `remove-cell` and only the text shows the value.
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    _record(name, value)
    print(f"{name}: {value}")


def glue_figure(name: str, axes) -> None:
    """Record a figure under `name`, so that the page can show it elsewhere, with MyST's directive `glue:figure`.

    `axes` are those of the figure, as functions of `layerwise.figures` return them: one or a sequence. The notebook
    shows the figure below the cell, as any other; in the book the cell carries the tag `remove-output`, since the
    directive shows it, with the caption, `:name:` and `:alt:` that are written there. Prose pages can show it as
    `../figures/NAME.png`.
    """
    first = axes if hasattr(axes, "figure") else axes[0]
    _record(name, first.figure)


def _record(name: str, value: object) -> None:
    """Put `value`, in all forms that the notebook can show, into the cell's outputs, without showing it."""
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is None:
        raise RuntimeError(
            "this records a value in a notebook and was called outside of one; print or save the value instead"
        )
    bundle, metadata = get_ipython().display_formatter.format(value)
    metadata["scrapbook"] = {"name": name, "mime_prefix": RECORD}
    display({RECORD + kind: data for kind, data in bundle.items()}, raw=True, metadata=metadata)


def download(frame, name: str):
    """A link that saves `frame` (a DataFrame) as the file `name`, carried inside the page: nothing to keep beside it.

    Returns an object that a notebook displays.
    """
    from IPython.display import HTML

    data = base64.b64encode(frame.to_csv(index=False).encode()).decode()
    label = html.escape(name)
    return HTML(
        f'<a class="download-data" download="{label}" href="data:text/csv;base64,{data}">'
        f"Download {label} ({len(frame)} rows)</a>"
    )


def offer(chapter: str, tables: Mapping) -> None:
    """The rows of a chapter (DataFrames by name) to take away: a link that saves each.

    On Colab, which forgets them, the browser also saves `CHAPTER-results.zip`: all of them in `tables/`, and in
    `results/` what the full profile has written with its provenance, which `python -m layerwise.book add` puts into a
    clone, beside the rows of other models.
    """
    from IPython.display import display

    for name, table in tables.items():
        display(download(table, f"{chapter}-{name}.csv".replace("_", "-")))
    if (colab := _colab()) is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tables").mkdir()
        for name, table in tables.items():
            table.to_csv(Path(folder) / "tables" / f"{name}.csv", index=False)
        written = Path("..") / "results" / chapter
        if written.is_dir():
            shutil.copytree(written, Path(folder) / "results" / chapter)
        colab.files.download(shutil.make_archive(f"{chapter}-results", "zip", folder))


def machine() -> None:
    """Print the GPU, its memory, and how large a model it has room for; without a GPU, on Colab, how to get one."""
    import torch

    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        gigabytes = min(gpu.total_memory for gpu in gpus) / 1e9
        # Weights are 55 % and more of what any work on models of this size takes at its peak: the chapter what_fits.
        most = int(0.55 * (gigabytes - 1) / 2)
        count = "" if len(gpus) == 1 else f"{len(gpus)} x "
        print(
            f"{count}{gpus[0].name}, {gigabytes:.0f} GB{' each' if count else ''}: all that is done in this book has "
            f"room for a model of {most} billion parameters; What fits where tells which work has room for larger ones"
        )
    elif _colab() is not None:
        print("No GPU: the embedded models need none. For larger ones: Runtime, Change runtime type")


def _colab():
    """Colab's own module, or None where this is no Colab."""
    try:
        import google.colab
    except ImportError:
        return None
    return google.colab


__all__ = ["download", "glue", "glue_figure", "machine", "offer"]
