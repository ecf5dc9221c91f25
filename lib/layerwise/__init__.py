"""Layer by Layer: score the blocks of a language model, plan, compress to the plan, evaluate.

Everything that a notebook needs is reached from here: `import layerwise as lw`, then `lw.load`, `lw.scores.lim`, ...
Names are resolved when they are first used. What importing the package does is to let transformers know the sliced
models, so that `AutoModelForCausalLM.from_pretrained` finds them.
"""

from importlib import import_module

from layerwise import sliced as sliced  # registers its classes

__version__ = "0.1.0"

_FUNCTIONS = {
    "load": "models",
    "save": "models",
    "tokens": "corpora",
    "shape": "shapes",
    "calibrate": "slicing",
    "compress": "compression",
    "compress_checkpoint": "streaming",
    "Plan": "plans",
    "Layer": "plans",
    "Assembly": "assembly",
    "Reference": "evaluation",
    "perplexity": "evaluation",
    "compare": "evaluation",
    "accuracy": "tasks",
    "answers": "tasks",
    "size": "evaluation",
    "speed": "timing",
    "memory": "footprint",
    "sweep": "sweeps",
    "Study": "experiments.study",
}
_MODULES = (
    "architectures",
    "book",
    "claims",
    "corpora",
    "damage",
    "evaluation",
    "figures",
    "models",
    "plans",
    "quantization",
    "results",
    "scores",
    "slicing",
    "stats",
    "structure",
    "world",
)

__all__ = [*_FUNCTIONS, *_MODULES]


def __getattr__(name: str):
    if name in _FUNCTIONS:
        return getattr(import_module(f"{__name__}.{_FUNCTIONS[name]}"), name)
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"layerwise has no {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
