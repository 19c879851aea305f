"""Recipes and how they are carried out."""

from distillens.study.carry_out import run
from distillens.study.reading import parse_recipe, read_recipe, shipped_recipes
from distillens.study.recipe import Recipe

__all__ = ["Recipe", "parse_recipe", "read_recipe", "run", "shipped_recipes"]
