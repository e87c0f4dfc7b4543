"""Recipes: one file for each paper, its values as defaults, and one for the demonstration weights."""
