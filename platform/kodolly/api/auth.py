"""Who may use the API: a flat set of client keys, compared in constant time."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from kodolly.errors import Unauthorized
from kodolly.http.token_guard import presented_token, same_secret


class KeyRing:
    """The accepted client keys; an empty ring lets everybody in."""

    def __init__(self, keys: Collection[str]) -> None:
        self._keys = tuple(keys)

    @property
    def are_needed(self) -> bool:
        """Whether there are any."""
        return bool(self._keys)

    def admit(self, authorization: str) -> str:
        """The client's accepted key, "" where none is needed. Raises Unauthorized otherwise."""
        if not self._keys:
            return ""
        token = presented_token(authorization)
        # Every key is compared, whichever matches, so that time tells nothing.
        matches = [same_secret(token, key) for key in self._keys]
        if not any(matches):
            raise Unauthorized(
                "Incorrect API key provided."
                if token
                else "No API key provided: send `Authorization: Bearer KEY`.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return token


def authorization_of(headers: Mapping[str, str]) -> str:
    """A request's Authorization header; clients of Anthropic's API send the key as `x-api-key`."""
    authorization, key = headers.get("authorization", ""), headers.get("x-api-key", "")
    return authorization or (f"Bearer {key}" if key else "")
