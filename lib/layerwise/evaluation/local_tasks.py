"""Tasks of lm-eval on items from a local folder: its own prompts, choices and metrics on other data."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from layerwise.text import textfiles

SPLIT = "test"  # what the items of a file are to lm-eval, whichever split of the Hub they are


@contextlib.contextmanager
def stand_ins(tasks: Sequence[str], folder, index) -> Iterator[tuple[Path, dict[str, str]]]:
    """A temporary folder of task files for lm-eval, and what each task's items are: file and hash.

    `folder` holds `NAME.jsonl` for each of `tasks`, an item a line, in the columns of the data set that lm-eval takes
    from the Hub for its task NAME. For a group, such as mmlu, one file holds the items of all its tasks, and its column
    "subject" the name that a task's part of the data set goes by in lm-eval. `index` is the `task_index` of a
    TaskManager that knows lm-eval's own tasks. A task file has the name of the task that it stands in for, includes
    lm-eval's own file, and changes only where items are. What `datasets` makes of them is in that folder too, so that
    a file that was edited is never answered from a cache.

    Raises ValueError, before anything is made, for a task without a file and for a file that isn't of its task.
    """
    files = _files(tasks, Path(folder).expanduser())
    parts = {task: _parts(task, path, index) for task, path in files.items()}
    origins = {
        task: f"{path.name} sha256:{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}" for task, path in files.items()
    }
    with tempfile.TemporaryDirectory(prefix="layerwise-tasks-") as made:
        for task, leaves in parts.items():
            if list(leaves) != [task]:
                _write(made, task, {"group": task, "task": list(leaves)}, index)
            for leaf, items in leaves.items():
                path = Path(made, f"{leaf}.jsonl")
                path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
                _write(made, leaf, {"task": leaf, "tag": None, **_source(path, index[leaf])}, index)
        yield Path(made), origins


def _files(tasks, folder):
    """The file of each task in a folder, or an error that says what is missing and what is there."""
    if not folder.is_dir():
        raise ValueError(
            f"data must be a folder of NAME.jsonl, one for each task, and there is no folder {str(folder)!r}"
        )
    files = {task: folder / f"{task}.jsonl" for task in tasks}
    if missing := [path.name for path in files.values() if not path.is_file()]:
        there = ", ".join(sorted(path.name for path in folder.glob("*.jsonl"))) or "no .jsonl file"
        raise ValueError(f"{folder} has no {' and no '.join(missing)}; there is {there}")
    return files


def _parts(task, path, index):
    """The items of a file by the task of lm-eval that asks them: one, or those of a group."""
    items = [item for _, item in textfiles.json_lines(path)]
    if not items:
        raise ValueError(f"{path} is empty: it should hold an item a line")
    leaves = _leaves(task, index)
    if leaves == [task]:
        return {task: items}
    names = {index[leaf].cfg.get("dataset_name"): leaf for leaf in leaves}
    if unknown := sorted({str(item.get("subject")) for item in items} - set(names)):
        raise ValueError(
            f"{path}: {task} is a group of {len(leaves)} tasks, and the column 'subject' says which an item is of. It "
            f"has {', '.join(unknown[:3])}, of which {task} has no task; there are {', '.join(sorted(map(str, names)))}"
        )
    parts = {}
    for item in items:
        parts.setdefault(names[item["subject"]], []).append(item)
    return parts


def _leaves(task, index):
    """Names of the tasks of a group, or of a tag in one; of a task its own."""
    entry = index[task]
    if entry.yaml_path is None:
        return sorted(entry.tags)
    if "group" not in entry.cfg:
        return [task]
    members = entry.cfg["task"]
    if not all(isinstance(member, str) and member in index for member in members):
        raise ValueError(f"lm-eval's group {task} changes tasks or defines them, so data can't stand in for theirs")
    return [leaf for member in members for leaf in _leaves(member, index)]


def _source(path, entry):
    """The fields of a task that say where its items are, with these in place of lm-eval's own."""
    if "class" in entry.cfg:
        raise ValueError(f"lm-eval's task {entry.name} is a program that reads its own data, so no file can stand in")
    return {
        "custom_dataset": None,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {SPLIT: str(path)}, "cache_dir": str(path.parent / "datasets")},
        "training_split": None,
        "validation_split": None,
        "test_split": SPLIT,
        "fewshot_split": None,
        "fewshot_config": None,  # zero-shot: it would only name a split that isn't there
    }


def _write(folder, name, fields, index):
    """A task file: JSON, which is YAML too."""
    Path(folder, f"{name}.yaml").write_text(json.dumps({"include": str(index[name].yaml_path), **fields}))
