"""The optional packages: which extra brings them, and the one line for a person who lacks them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from kodolly.errors import KodollyError

# extra -> the modules whose absence means that it is not installed
MODULES = {
    "web": ("gradio", "openai"),
    "transformers": ("torch", "transformers", "accelerate", "llguidance"),
}
# extra -> the target of the Makefile that installs it in a clone
MAKE_TARGETS = {"web": "run", "transformers": "run", "data": "data", "train": "train-env"}


def missing_modules(extras: Iterable[str]) -> dict[str, list[str]]:
    """The modules that cannot be imported, by the extra that brings them; nothing is imported."""
    absent = {extra: [name for name in MODULES[extra] if not find_spec(name)] for extra in extras}
    return {extra: names for extra, names in absent.items() if names}


def install_command(extras: Iterable[str]) -> str:
    """How to install extras, for a person with the package and for one with a clone."""
    names = sorted(extras)
    return f"pip install 'kodolly[{','.join(names)}]' (in a clone: `make {MAKE_TARGETS[names[0]]}`)"


def not_installed(modules: Iterable[str], extras: Iterable[str]) -> str:
    """The message about modules that are not installed, and how to get them, in one line."""
    names = list(modules)
    verb = "is" if len(names) == 1 else "are"
    return f"{', '.join(names)} {verb} not installed: {install_command(extras)}"


def require(*extras: str) -> None:
    """Raise KodollyError, with the command that helps, unless all these extras are installed."""
    if absent := missing_modules(extras):
        raise KodollyError(
            not_installed([name for names in absent.values() for name in names], absent)
        )
