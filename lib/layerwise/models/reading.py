"""How transformers reads weights here: quietly, and what doesn't fit is an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path

from transformers.utils import logging

from layerwise.models.folders import DamagedModel


@contextmanager
def quiet(bars: bool) -> Iterator[None]:
    """Transformers without its report of what doesn't fit, which becomes an error here; progress bars if wanted."""
    verbosity, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    spreading = getLogger("accelerate.big_modeling")  # warns of what `load` says in words of its own
    level = spreading.level
    spreading.setLevel("ERROR")
    logging.set_verbosity_error()
    if not bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        spreading.setLevel(level)
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def check_fit(report: dict, place: Path) -> None:
    """Raise DamagedModel if what transformers reports of reading `place` isn't that every weight found its place."""
    for what in ("missing", "mismatched", "unexpected"):
        names = sorted(key if isinstance(key, str) else key[0] for key in report[f"{what}_keys"])
        names = [key for key in names if not key.endswith("inv_freq")]  # a constant that old checkpoints hold
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise DamagedModel(f"{place}: the weights do not fit config.json, {what}: {', '.join(names[:3])}{more}")
