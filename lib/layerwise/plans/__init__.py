"""What is to be done to each layer, and the rules that decide it from scores and a budget; knows no model."""

from layerwise.plans.allocation import allocate, number_of_bytes, told_bytes
from layerwise.plans.baselines import by_position, in_reverse, shuffled
from layerwise.plans.drops import drop, drop_run
from layerwise.plans.groups import bits, outliers
from layerwise.plans.layer import Layer
from layerwise.plans.llama_cpp import llama_cpp_bytes
from layerwise.plans.parts import by_part, bytes_at
from layerwise.plans.plan import Plan
from layerwise.plans.slices import constant_slices, dynamic_slices
from layerwise.plans.storage import Grouped
from layerwise.plans.written import FIELDS

__all__ = [
    "FIELDS",
    "Grouped",
    "Layer",
    "Plan",
    "allocate",
    "bits",
    "by_part",
    "bytes_at",
    "by_position",
    "constant_slices",
    "drop",
    "drop_run",
    "dynamic_slices",
    "in_reverse",
    "llama_cpp_bytes",
    "number_of_bytes",
    "outliers",
    "shuffled",
    "told_bytes",
]
