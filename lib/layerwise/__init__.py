"""Layer by Layer: score the blocks of a language model, plan, compress to the plan, evaluate.

Everything that a notebook needs is reached from here: `import layerwise as lw`, then `lw.load`, `lw.scores.lim`, ...
Names are resolved when they are first used. What importing the package does is to let transformers know the sliced
models, so that `AutoModelForCausalLM.from_pretrained` finds them.
"""

from importlib import import_module

from layerwise.compression import sliced as sliced  # registers its classes

__version__ = "0.1.0"

# Where each name is: the module of a function, and of a module its path below this package.
_FUNCTIONS = {
    "load": "models",
    "save": "models",
    "tokens": "text.corpora",
    "shape": "backbone.shapes",
    "calibrate": "compression.slicing",
    "compress": "compression.compress",
    "compress_checkpoint": "models.streaming",
    "save_gguf": "models",
    "Plan": "plans",
    "Layer": "plans",
    "Assembly": "experiments.assembly",
    "Reference": "evaluation",
    "perplexity": "evaluation",
    "compare": "evaluation",
    "accuracy": "evaluation.tasks",
    "answers": "evaluation.tasks",
    "size": "evaluation",
    "speed": "evaluation.timing",
    "memory": "evaluation.footprint",
    "fit": "costs.fitting",
    "sweep": "experiments.sweeps",
    "Study": "experiments.study",
    "evolve": "experiments.search",
}
_MODULES = {
    "architectures": "backbone.architectures",
    "book": "book",
    "claims": "claims",
    "corpora": "text.corpora",
    "costs": "costs",
    "damage": "evaluation.damage",
    "evaluation": "evaluation",
    "figures": "figures",
    "models": "models",
    "plans": "plans",
    "quantization": "quantization",
    "results": "experiments.results",
    "scores": "scores",
    "slicing": "compression.slicing",
    "stats": "stats",
    "structure": "backbone.structure",
    "world": "world",
}

__all__ = [*_FUNCTIONS, *_MODULES]


def __getattr__(name: str):
    if name in _FUNCTIONS:
        return getattr(import_module(f"{__name__}.{_FUNCTIONS[name]}"), name)
    if name in _MODULES:
        return import_module(f"{__name__}.{_MODULES[name]}")
    raise AttributeError(f"layerwise has no {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
