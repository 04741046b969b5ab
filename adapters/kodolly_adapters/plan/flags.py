"""Reading the command line's values. Every function raises ValueError naming the flag at fault."""

from __future__ import annotations

from typing import Any

from .gpus import GPUS


def counts(value: str) -> tuple[int, ...]:
    """`--gpus 1,4,8`: numbers of GPUs, each once, in the order given."""
    found = []
    for part in value.split(","):
        if not part.strip().isdecimal() or int(part) < 1:
            raise ValueError(f"--gpus {value}: numbers of GPUs with commas, for example 1,4,8")
        found.append(int(part))
    return tuple(dict.fromkeys(found))


def kinds(value: str) -> tuple[str, ...]:
    """`--gpu a100-80,h100`: names in gpus.GPUS, each once, in the order given."""
    names = tuple(dict.fromkeys(part.strip() for part in value.split(",")))
    for name in names:
        if name not in GPUS:
            raise ValueError(f"--gpu {name}: no such GPU here; there are {', '.join(GPUS)}")
    return names


def number(flag: str, value: float | None, lowest: float, highest: float | None = None) -> Any:
    """`value` unchanged where it is within the limits or not given."""
    if value is None or (value >= lowest and (highest is None or value <= highest)):
        return value
    limits = f"from {lowest:g} to {highest:g}" if highest is not None else f"at least {lowest:g}"
    raise ValueError(f"{flag} {value:g}: give {limits}")
