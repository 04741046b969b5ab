"""Every error the converter raises on purpose.

ConvertError
├── OptionError    a flag holds a value that cannot be used
├── InputError     a file cannot be read as what it is; names the file and the byte offset
├── OutputError    the output folder holds something else, or cannot be written
└── EngineError    a worker process died, or the engine is not installed
"""

from __future__ import annotations


class ConvertError(Exception):
    """Base of the converter's errors; its text is meant for people."""


class OptionError(ConvertError):
    """A flag holds a value that cannot be used."""


class InputError(ConvertError):
    """An input cannot be read as what it is.

    `file` is its name as given (a zip's member as `zip!member`); `offset` counts bytes of the uncompressed
    file from 0, or is None where no place is known.
    """

    def __init__(self, file: str, reason: str, offset: int | None = None) -> None:
        where = file if offset is None else f"{file}: byte {offset}"
        super().__init__(f"{where}: {reason}")
        self.file = file
        self.reason = reason
        self.offset = offset

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, int | None]]:
        """Crosses process borders whole."""
        return InputError, (self.file, self.reason, self.offset)


class OutputError(ConvertError):
    """The output folder holds something else, or cannot be written."""


class EngineError(ConvertError):
    """A worker process died, or the engine asked for is not installed."""
