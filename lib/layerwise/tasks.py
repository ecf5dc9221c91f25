"""What a model is worth on tasks: zero-shot accuracy by lm-eval, and the items behind it."""

import contextlib
import difflib
import logging
from collections.abc import Sequence

import pandas as pd
from torch import nn

from layerwise.structure import twin


def accuracy(
    model: nn.Module, tokenizer, tasks: Sequence[str], limit: int | None = None, batch: int = 64
) -> pd.DataFrame:
    """Zero-shot accuracy by lm-eval, one row per task: task, metric, value, stderr, chance, n.

    The metric is acc_norm where the task has it, else acc, and exact_match for generated answers. `chance` is what
    guessing earns: for a task of the world what the world says, else the mean of 1 / number of choices over the items;
    it is missing where answers are generated. `limit` takes the first items of each task.
    """
    from layerwise import world

    result = _harness(model, tokenizer, tasks, limit, batch)
    return pd.DataFrame([_task_row(task, result, world.CHANCE) for task in tasks])


def answers(
    model: nn.Module, tokenizer, tasks: Sequence[str], limit: int | None = None, batch: int = 64
) -> pd.DataFrame:
    """The items behind `accuracy`, one row each: task, item (its number in the task), correct (1 or 0).

    Two models are compared on the same items: the differences of `correct` vary less than two accuracies do.
    """
    result = _harness(model, tokenizer, tasks, limit, batch)
    rows = []
    for task in tasks:
        metric, kind = _metric(task, result)
        samples = enumerate(_samples(task, result, kind))
        rows += [{"task": task, "item": i, "correct": float(sample[metric])} for i, sample in samples]
    return pd.DataFrame(rows)


def _harness(model, tokenizer, tasks, limit, batch) -> dict:
    """lm-eval's results of `tasks`, zero-shot, samples included."""
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from layerwise import world

    with _quiet("lm_eval", "datasets"):
        # Indexing lm-eval's own thousands of tasks takes seconds; it is done only when one of them is asked for.
        ours_only = all(task.startswith("world_") for task in tasks)
        manager = TaskManager(include_path=str(world.TASK_PATH), include_defaults=not ours_only)
        known = set(manager.all_tasks)
        for task in tasks:
            if task not in known:
                near = difflib.get_close_matches(task, known, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(
                    f"unknown task {task!r}.{hint} The world's tasks are {', '.join(world.TASKS)}; others go by their "
                    "name in lm-eval."
                )
        return evaluator.simple_evaluate(
            model=HFLM(pretrained=twin(model), tokenizer=tokenizer, batch_size=batch),
            tasks=list(tasks),
            num_fewshot=0,
            limit=limit,
            task_manager=manager,
            # Nothing here is drawn, so lm-eval need not reseed the generators of the whole process.
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
        )


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
    }


def _metric(task, result):
    """The metric of a task and the filter of answers that it is of; of several filters the first is the strict one."""
    keys = [key.partition(",") for key in result["results"][task]]
    for metric in ("acc_norm", "acc", "exact_match"):
        if kinds := [kind for name, _, kind in keys if name == metric]:
            return metric, kinds[0]
    raise ValueError(f"task {task!r} reports none of acc_norm, acc and exact_match, so it has no accuracy")


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
