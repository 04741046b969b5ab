"""Every error of training, merging and planning that is meant for people.

TuneError
├── RecipeError    a recipe cannot be used; names the file and the key
├── DataError      training rows cannot be read; names the file and the line
├── BaseError      the base model is not what the recipe needs, or is not there
├── AdapterError   an adapter does not belong to the base, or holds what cannot be merged
└── OutputError    the output folder holds something else, or cannot be written
"""

from __future__ import annotations


class TuneError(Exception):
    """Base of the making side's errors beyond conversion; its text is meant for people."""


class RecipeError(TuneError):
    """A recipe cannot be used."""


class DataError(TuneError):
    """Training rows cannot be read."""


class BaseError(TuneError):
    """The base model is not there, or not what the recipe needs."""


class AdapterError(TuneError):
    """An adapter does not belong to the base, or holds what cannot be merged."""


class OutputError(TuneError):
    """The output folder holds something else, or cannot be written."""
