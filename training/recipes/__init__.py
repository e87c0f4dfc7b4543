"""Recipes: one file for each paper, its values as defaults, one of our own, one for the demonstration weights."""

from __future__ import annotations

from training.recipe import Recipe
from training.recipes import adjacent, cnn_lstm, demonstration, hemonode, radnet, resnet_2d, resnet_3d, subtypes

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        hemonode.RECIPE,
        *radnet.RECIPES,
        cnn_lstm.RECIPE,
        adjacent.RECIPE,
        resnet_2d.RECIPE,
        *resnet_3d.RECIPES,
        *subtypes.RECIPES,
        *demonstration.RECIPES,
    )
}
"""What `hemonode train` knows by name. Adding a recipe is adding its module."""

__all__ = ["RECIPES"]
