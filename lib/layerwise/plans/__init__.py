"""What is to be done to each layer, and the rules that decide it from scores and a budget; knows no model."""

from layerwise.plans.plan import FIELDS, Layer, Plan
from layerwise.plans.slices import constant_slices, dynamic_slices

__all__ = ["FIELDS", "Layer", "Plan", "constant_slices", "dynamic_slices"]
