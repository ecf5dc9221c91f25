"""What a model is worth and costs: perplexity, paired comparison, tasks, size, speed, memory, damage by one block."""

from layerwise.evaluation.comparison import (
    Comparison,
    Reference,
    Size,
    compare,
    perplexity,
    size,
    window_differences,
    window_losses,
)

__all__ = [
    "Comparison",
    "Reference",
    "Size",
    "compare",
    "perplexity",
    "size",
    "window_differences",
    "window_losses",
]
