"""What all commands of the making side share: one line for people, and the exit status of every error."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec

from kodolly_adapters.errors import OptionError, UserError

# Passed as `repeat` by commands that can be continued.
GOES_ON = ". The same command goes on from here"


def say(command: str, text: str) -> None:
    """Write a line of `kodolly COMMAND` to standard error."""
    sys.stderr.write(f"kodolly {command}: {text}\n")
    sys.stderr.flush()


def require(*packages: str) -> None:
    """Raises ModuleNotFoundError for a package that is not installed, before anything slow is imported."""
    for name in packages:
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def run(
    command: str, work: Callable[[], int | None], *, repeat: str = "", show: bool = True
) -> int:
    """Do `work` and return the exit status: its own (None is 0), or that of the error it ends with.

    OptionError is 2, every other UserError and OSError 1, Ctrl-C 130. The error's text is written as one line if
    `show`. After an OSError or Ctrl-C, `repeat` is appended: it says that the command can be given again.
    """
    try:
        return work() or 0
    except UserError as error:
        text, status = str(error), 2 if isinstance(error, OptionError) else 1
    except OSError as error:  # a full disk, most of all
        text, status = f"{error}{repeat}", 1
    except KeyboardInterrupt as error:
        sys.stderr.write("\n" if show else "")  # after the terminal's ^C
        text, status = f"{str(error) or 'stopped'}{repeat}", 130
    if show:
        say(command, text)
    return status
