"""What a request to a path that does not exist was probably meant for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches

from starlette.routing import BaseRoute, Route

LONGEST = 128  # characters of a path that is compared with others
ALIKE = 0.8  # of `difflib`'s measure, from 0 to 1
VERSION = "/v1"


def hint(routes: Iterable[BaseRoute], method: str, path: str) -> str:
    """The message for a request that no route takes."""
    known = [route for route in routes if isinstance(route, Route)]
    if allowed := methods_of(known, path):
        return f"{method} is not allowed on {path}: use {' or '.join(allowed)}."
    message = f"Invalid URL ({method} {path})"
    if len(path) <= LONGEST and (near := _nearest(known, path)) is not None:
        return f"{message}: did you mean {' or '.join(methods_of(known, near))} {near}?"
    return f"{message}: /docs shows what there is."


def methods_of(routes: Iterable[Route], path: str) -> list[str]:
    """The methods that a path takes, HEAD aside; none if there is no such path."""
    matching = [route for route in routes if route.path_regex.match(path)]
    return sorted({method for route in matching for method in route.methods or ()} - {"HEAD"})


def _nearest(routes: list[Route], path: str) -> str | None:
    for candidate in _candidates(path):
        if methods_of(routes, candidate):
            return candidate
    whole = [route.path for route in routes if "{" not in route.path]
    return next(iter(get_close_matches(path, whole, n=1, cutoff=ALIKE)), None)


def _candidates(path: str) -> Iterator[str]:
    """The path as it should be written: one slash between parts, one /v1 at the beginning, or none."""
    parts = [part for part in path.split("/") if part]
    tidy = "/" + "/".join(parts)
    yield tidy
    rest = tidy.rpartition(f"{VERSION}/")[2] if f"{VERSION}/" in tidy else tidy[1:]
    yield f"{VERSION}/{rest}"
    yield f"/{rest}"
    if tidy != tidy.lower():
        yield from _candidates(path.lower())
