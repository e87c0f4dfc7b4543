"""Recipes: one file for each paper, its values as defaults, and one for the demonstration weights."""

from __future__ import annotations

from training.recipe import Recipe
from training.recipes import cnn_lstm, radnet

RECIPES: dict[str, Recipe] = {module.RECIPE.name: module.RECIPE for module in (radnet, cnn_lstm)}
"""What `hemonode train` knows by name. Adding a recipe is adding its module."""

__all__ = ["RECIPES"]
