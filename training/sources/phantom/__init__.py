"""Synthetic head CT with labelled intracranial haemorrhage: no patient's, so it may travel with the project.

A figure measured on it says that the machinery works, never how well a network reads patients.
"""

from training.sources.phantom.spec import EASY, HARD, PRESETS, REAL, Clot, Spec
from training.sources.phantom.study import PhantomStudy, make_study

__all__ = ["EASY", "HARD", "PRESETS", "REAL", "Clot", "PhantomStudy", "Spec", "make_study"]
