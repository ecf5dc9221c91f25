"""Cases that the workers of an executor run, wherever these are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, as_completed
from functools import cache

from layerwise import models
from layerwise.experiments.cases import TOGETHER, Case, Function, Outcome, Runner
from layerwise.provenance import provenance


@cache
def _loaded(path: str) -> tuple:
    return models.load(path)


def remote(path: str, how: str, cases: list, settings: Mapping) -> tuple[list[Outcome], dict]:
    """What a worker of an executor does: outcomes of cases by a method of `Runner`, and where they come from."""
    return list(getattr(Runner(*_loaded(path)), how)(cases, **settings)), provenance()


def elsewhere(
    executor: Executor, path: str, how: str, cases: list, settings: Mapping, origin: Mapping
) -> Iterator[tuple[Case | Function, list[dict] | Exception, Mapping]]:
    """Outcomes of cases that an executor's workers run on the model at `path`, and where they come from, as finished.

    `origin` is told of those that no worker has understood.
    """
    futures = {}
    try:
        for start in range(0, len(cases), TOGETHER):
            part = cases[start : start + TOGETHER]
            futures[executor.submit(remote, path, how, part, settings)] = part
        for future in as_completed(futures):
            part, where = futures[future], origin
            try:
                found, where = future.result()
                outcomes = [outcome for _, outcome in found]
            except Exception as error:  # the worker is gone, or never understood what was asked
                outcomes = [error] * len(part)
            for case, outcome in zip(part, outcomes, strict=True):
                yield case, outcome, where
    finally:
        for future in futures:
            future.cancel()
