"""The embedded world: text with known facts and known entropy, tasks on it, and small models trained on it."""

from .data import KINDS, rows, world
from .items import CHANCE, TASK_PATH, TASKS
from .tokens import tokenizer

__all__ = ["CHANCE", "KINDS", "TASKS", "TASK_PATH", "rows", "tokenizer", "world"]
