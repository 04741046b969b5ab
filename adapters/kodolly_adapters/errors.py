"""The errors of the making side that the user can fix; their texts say how.

UserError
├── OptionError    a flag holds a value that cannot be used
├── RecipeError    a recipe cannot be used; names the file and the key
├── InputError     an input cannot be read as what it is; names the file and the byte offset
├── DataError      training rows cannot be read; names the file and the line
├── BaseError      the base model is not there, or not what is needed
├── AdapterError   an adapter does not belong to the base, or holds what cannot be merged
├── FetchError     the embedded model cannot be downloaded or made
├── OutputError    the output folder holds something else, or cannot be written
└── EngineError    a worker process died, or the engine is not installed
"""

from __future__ import annotations


class UserError(Exception):
    """Base of the making side's errors; its text is meant for people."""


class OptionError(UserError):
    """A flag holds a value that cannot be used."""


class RecipeError(UserError):
    """A recipe cannot be used."""


class InputError(UserError):
    """An input cannot be read as what it is.

    `file` is its name as given (a zip's member as `zip!member`); `offset` counts bytes of the uncompressed
    file from 0; it is None where the place is unknown.
    """

    def __init__(self, file: str, reason: str, offset: int | None = None) -> None:
        where = file if offset is None else f"{file}: byte {offset}"
        super().__init__(f"{where}: {reason}")
        self.file = file
        self.reason = reason
        self.offset = offset

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, int | None]]:
        """Keep all three fields when the error is pickled between processes."""
        return InputError, (self.file, self.reason, self.offset)


class DataError(UserError):
    """Training rows cannot be read."""


class BaseError(UserError):
    """The base model is not there, or not what the recipe needs."""


class AdapterError(UserError):
    """An adapter does not belong to the base, or holds what cannot be merged."""


class FetchError(UserError):
    """The embedded model cannot be downloaded or made."""


class OutputError(UserError):
    """The output folder holds something else, or cannot be written."""


class EngineError(UserError):
    """A worker process died, or the engine asked for is not installed."""


def first_line(error: BaseException) -> str:
    """The first line of an error of a library, which can be a page long; its class name if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
