"""A streamed message's way to its client."""

from __future__ import annotations

from collections.abc import Awaitable

from kodolly.api.client_output import ClientOutput, PendingSend
from kodolly.api.messages.events import MessageEvents


class MessageOutput:
    """An output that is written a chat's events, and sends those of a message to the `client`."""

    def __init__(self, client: ClientOutput, events: MessageEvents) -> None:
        self.request_id = client.request_id
        self._client = client
        self._events = events

    @property
    def has_started(self) -> bool:
        """Whether the client has a part of the response."""
        return self._client.has_started

    @property
    def quiet_ticks(self) -> int:
        """How often `Pings` looked since the client was sent something."""
        return self._client.quiet_ticks

    @quiet_ticks.setter
    def quiet_ticks(self, ticks: int) -> None:
        self._client.quiet_ticks = ticks

    def push(self, data: bytes) -> PendingSend | None:
        """Sends what the chat's events mean for the message."""
        made = self._events.feed(data)
        return self._client.push(made) if made else None

    def ping(self) -> None:
        """Sends a comment, which Anthropic's clients skip too."""
        self._client.ping()

    async def finish(self, work: Awaitable[None]) -> None:
        """Awaits a pending send. Raises ClientStalled."""
        await self._client.finish(work)

    async def write(self, data: bytes) -> None:
        """Sends what the chat's events mean, and waits while the client is slow. Raises ClientStalled."""
        if pending := self.push(data):
            await self.finish(pending)

    async def close(self) -> None:
        """Ends the response. Raises ClientStalled."""
        await self._client.close()
