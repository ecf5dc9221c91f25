"""What a model is worth on tasks: zero-shot accuracy by lm-eval, and the items behind it."""

import contextlib
import difflib
import functools
import logging
import warnings
from collections.abc import Sequence

import pandas as pd
from torch import nn

from layerwise import world
from layerwise.backbone.structure import evaluating

ACCURACIES = ("acc_norm", "acc", "exact_match")  # the first that a task has is its accuracy


def accuracy(
    model: nn.Module, tokenizer, tasks: Sequence[str], limit: int | None = None, batch: int = 64, data=None
) -> pd.DataFrame:
    """Zero-shot accuracy by lm-eval, one row per task: task, metric, value, stderr, chance, n, cut, data.

    Parameters
    ----------
    model, tokenizer
        Both are left as they are.
    tasks
        Names of the world's tasks or of lm-eval's.
    limit
        Take the first items of each task, so many; None takes all.
    batch
        Requests that are run at a time.
    data
        A folder that holds `NAME.jsonl` for each task, in the columns of the data set on the Hub; its items are asked
        in place of the Hub's, with lm-eval's own prompts and metrics, and without a network. A group such as mmlu is
        one file, with the column "subject".

    Returns
    -------
    rows
        The metric is acc_norm where the task has it, else acc, and exact_match for generated answers. `chance` is what
        guessing earns: for a task of the world what the world says, else the mean of 1 / number of choices over the
        items; it is missing where answers are generated. A prompt that is longer than the model's positions loses its
        beginning, as in lm-eval: `cut` says how many of the n items have such a prompt, and a warning does. `data` has
        the file's name and hash; it is missing where items are the Hub's or, as those of the world's tasks always are,
        the package's.

    Raises
    ------
    ValueError
        Before any work, for a task that lm-eval doesn't know, that has no accuracy or that `data` has no file of, for
        items without what the task asks, for a tokenizer without any special token, and where answers fill all
        positions.
    """
    result, origins = _harness(model, tokenizer, tasks, limit, batch, data)
    return pd.DataFrame([_task_row(task, result, world.CHANCE) | {"data": origins.get(task)} for task in tasks])


def answers(
    model: nn.Module, tokenizer, tasks: Sequence[str], limit: int | None = None, batch: int = 64, data=None
) -> pd.DataFrame:
    """The items behind `accuracy`, one row each: task, item (its number in the task), correct (1 or 0), data.

    Two models are compared on the same items: the differences of `correct` vary less than two accuracies do.
    Errors as for `accuracy`.

    Parameters
    ----------
    model, tokenizer, tasks, limit, batch, data
        As for `accuracy`.
    """
    result, origins = _harness(model, tokenizer, tasks, limit, batch, data)
    rows = []
    for task in tasks:
        metric, kind = _metric(task, result)
        for i, sample in enumerate(_samples(task, result, kind)):
            rows.append({"task": task, "item": i, "correct": float(sample[metric]), "data": origins.get(task)})
    return pd.DataFrame(rows)


def _harness(model, tokenizer, tasks, limit, batch, data) -> tuple[dict, dict[str, str]]:
    """lm-eval's results of `tasks`, zero-shot, samples included; and where the items of tasks are from `data`, which.

    A sample has one field more than lm-eval's: `cut`, whether a prompt of it was too long for the model.
    """
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    from layerwise.evaluation import local_tasks
    from layerwise.evaluation.harness import Harness

    others = [task for task in tasks if not task.startswith("world_")]
    with _quiet("lm_eval", "datasets"), evaluating(model), contextlib.ExitStack() as stack:
        manager = _manager(str(world.TASK_PATH), bool(others))
        _check_names(tasks, manager)
        origins = {}
        if data is not None and others:
            made, origins = stack.enter_context(local_tasks.stand_ins(others, data, manager.task_index))
            manager = TaskManager(include_path=[str(world.TASK_PATH), str(made)], include_defaults=False)
        lm = Harness(model, tokenizer, batch)
        built = {task: _built(task, manager, origins.get(task)) for task in tasks}
        for task, loaded in built.items():
            _check_metrics(task, loaded["tasks"].values())
            lm.check_room(loaded["tasks"])
        result = evaluator.simple_evaluate(
            model=lm,
            tasks=[loaded["groups"].get(task) or loaded["tasks"][task] for task, loaded in built.items()],
            num_fewshot=0,
            limit=limit,
            task_manager=manager,
            # Nothing here is drawn, so lm-eval need not reseed the generators of the whole process.
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
        )
    for samples in result["samples"].values():
        for sample in samples:
            sample["cut"] = any(map(lm.was_cut, sample["arguments"]))
    for task in tasks:
        samples = _samples(task, result, _metric(task, result)[1])
        if cut := sum(sample["cut"] for sample in samples):
            warnings.warn(
                f"{task}: {cut} of {len(samples)} items have a prompt longer than the {lm.max_length} positions of "
                "the model, which saw only its end",
                stacklevel=3,
            )
    return result, origins


@functools.cache
def _manager(path, include_defaults):
    """lm-eval's index of the tasks in a folder, and of its own thousands: that takes seconds, so only if it must be."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=path, include_defaults=include_defaults)


def _check_names(tasks, manager):
    known = set(manager.all_tasks) - set(manager.all_tags)
    for task in tasks:
        if task in manager.all_tags:
            there = ", ".join(sorted(manager.task_index[task].tags))
            raise ValueError(
                f"{task!r} is a name for several tasks of lm-eval, not a task: name those you want of {there}"
            )
        if task not in known:
            near = difflib.get_close_matches(task, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"unknown task {task!r}.{hint} The world's tasks are {', '.join(world.TASKS)}; others go by their "
                "name in lm-eval."
            )


def _built(task, manager, origin):
    """A task with its items, as lm-eval loads it, which asks the first of them for all that the task needs."""
    try:
        return manager.load([task])
    except Exception as error:
        if origin is None:
            raise
        raise ValueError(f"the items of {origin} are not such as lm-eval's {task} asks: {error}") from error


def _check_metrics(task, loaded):
    """Raise ValueError, before hours of work, for a task, or one of a group's, that is judged by no accuracy."""
    if not all(set(ACCURACIES) & set(each.aggregation()) for each in loaded):
        raise ValueError(f"task {task!r} reports none of {', '.join(ACCURACIES)}, so it has no accuracy")


# Reading lm-eval's results.


def _task_row(task, result, stated):
    metric, kind = _metric(task, result)
    found, samples = result["results"][task], _samples(task, result, kind)
    stderr = found.get(f"{metric}_stderr,{kind}")
    configs = [result["configs"][leaf] for leaf in _leaves(task, result.get("group_subtasks", {}))]
    return {
        "task": task,
        "metric": metric,
        "value": found[f"{metric},{kind}"],
        "stderr": float("nan") if stderr in (None, "N/A") else stderr,
        "chance": _chance(task, configs, samples, stated),
        "n": len(samples),
        "cut": sum(sample["cut"] for sample in samples),
    }


def _metric(task, result):
    """The metric of a task and the filter of answers that it is of; of several filters the first is the strict one."""
    keys = [key.partition(",") for key in result["results"][task]]
    found = [(metric, kind) for metric in ACCURACIES for name, _, kind in keys if name == metric]
    return found[0]


def _samples(task, result, kind):
    """The items of a task, or of all tasks of a group, one each: lm-eval logs an item once for every filter."""
    leaves = _leaves(task, result.get("group_subtasks", {}))
    return [sample for leaf in leaves for sample in result["samples"][leaf] if sample["filter"] == kind]


def _leaves(task, subtasks):
    return [leaf for child in subtasks[task] for leaf in _leaves(child, subtasks)] if subtasks.get(task) else [task]


def _chance(task, configs, samples, stated):
    if task in stated:
        return stated[task]
    if all(config["output_type"] == "multiple_choice" for config in configs):
        return sum(1 / len(sample["arguments"]) for sample in samples) / len(samples)
    return float("nan")


@contextlib.contextmanager
def _quiet(*names):
    """Errors only, from these loggers; progress bars are not logs and stay."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
