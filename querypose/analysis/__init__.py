"""What experiments cost and give: parameters and GFLOPs of a model, and tables of ablations."""

from querypose.analysis.complexity import Complexity, measure_complexity

__all__ = ["Complexity", "measure_complexity"]
