"""The book: notebooks executed with papermill, pages built with Jupyter Book, and what notebooks need to take part.

`python -m layerwise.book` is the command line. What a notebook imports from here (`glue`, `download`) works on a
bare Colab as well: it needs IPython and nothing of the book's own tools.
"""

import base64
import html

# The prefix that myst-nb gives to a value that is recorded in the notebook but not displayed.
RECORD = "application/papermill.record/"


def glue(name: str, value: object) -> None:
    """Record `value` under `name`, so that the text of the page can show it with MyST's `glue` role.

    NumPy and torch scalars are recorded as Python numbers, so that a format in the role applies to them. Where the
    notebook is not part of a built book (Colab, JupyterLab) the printed line is what the reader sees; in the book
    the cell carries the tag `remove-cell` and only the text shows the value.
    """
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is None:
        raise RuntimeError(
            "glue() records a value in a notebook and was called outside of one; print the value instead"
        )
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    bundle, metadata = get_ipython().display_formatter.format(value)
    metadata["scrapbook"] = {"name": name, "mime_prefix": RECORD}
    display({RECORD + kind: data for kind, data in bundle.items()}, raw=True, metadata=metadata)
    print(f"{name}: {value}")


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


__all__ = ["download", "glue"]
