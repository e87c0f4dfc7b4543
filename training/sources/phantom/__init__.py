"""Synthetic head CT with labelled intracranial haemorrhage: no patient's, so it may travel with the project.

A figure measured on it says that the machinery works, never how well a network reads patients.
"""

from training.sources.phantom.dicom import Exam, instances, save, write_localizer_only_study, write_study
from training.sources.phantom.makers import EXAM, MAKERS, Maker
from training.sources.phantom.spec import EASY, HARD, PRESETS, REAL, Clot, Spec
from training.sources.phantom.study import PhantomStudy, make_study

__all__ = [
    "EASY",
    "EXAM",
    "HARD",
    "MAKERS",
    "PRESETS",
    "REAL",
    "Clot",
    "Exam",
    "Maker",
    "PhantomStudy",
    "Spec",
    "instances",
    "make_study",
    "save",
    "write_localizer_only_study",
    "write_study",
]
