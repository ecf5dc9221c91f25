"""lm-eval calls this to read a task's items, wherever the package is installed."""

from pathlib import Path

from datasets import Dataset, DatasetDict


def read(task: str, **_) -> DatasetDict:
    return DatasetDict({"test": Dataset.from_json(str(Path(__file__).parent / f"{task}.jsonl"))})
