"""Eigenspace dynamics: what a training learns along each eigenvector, and in which order."""

from distillens.measures.eigenspace.directions import (
    Directions,
    PredictionCourse,
    example_directions,
    gram_directions,
    input_directions,
    project_predictions,
    project_weights,
)
from distillens.measures.eigenspace.pairs import compare_pairs, draw_pairs, summarise_bias

__all__ = [
    "Directions",
    "PredictionCourse",
    "compare_pairs",
    "draw_pairs",
    "example_directions",
    "gram_directions",
    "input_directions",
    "project_predictions",
    "project_weights",
    "summarise_bias",
]
