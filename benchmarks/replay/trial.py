"""One answer, cut at some token, and what two replays of it give: forced, and left to itself."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from kodolly.api.request import ApiRequest
from kodolly.api.resume.journal import Choice, Journal
from kodolly.api.resume.replay_cut import Diverged, ReplayCut
from kodolly.api.resume.replay_request import replay_request
from kodolly.api.sse import data_of, event

PATH = "/v1/chat/completions"

Events = list[dict[str, Any]]


@dataclass(slots=True)
class Trial:
    """An answer's events, and after how many of its tokens its engine is taken to have died."""

    body: dict[str, Any]
    events: Events
    cut: int = 0

    def choose_cut(self, rng: random.Random) -> None:
        """Somewhere between the first token and the last."""
        self.cut = rng.randrange(1, max(2, len(ids_of(self.events))))

    def choice(self) -> tuple[ApiRequest, Choice]:
        """The request, and what its client has, as the API would know it."""
        body = {name: value for name, value in self.body.items() if name != "return_token_ids"}
        request = ApiRequest(PATH, body, "replay", chat=True)
        journal, delivered = Journal(request), 0
        for each in self.events:
            journal.add(event(each))
            delivered += len(ids_of([each]))
            if delivered >= self.cut:
                break
        journal.fold()
        return request, journal.choices[0]

    def again(self, *, force: bool) -> dict[str, Any]:
        """The body of a replay."""
        request, choice = self.choice()
        body = replay_request(request, choice, "replay", force=force).body
        return body | {"return_token_ids": True}

    def agrees(self, replayed: Events) -> bool:
        """Whether the API would have gone on with this replay."""
        _, choice = self.choice()
        cut = ReplayCut(choice, chat=True)
        try:
            for body in replayed:
                for part in body["choices"]:
                    cut.take(cut.rest(part))
        except Diverged:
            return False
        return choice.is_finished


def ids_of(events: Events) -> list[int]:
    """The tokens of an answer."""
    return [i for each in events for part in each["choices"] for i in part.get("token_ids") or ()]


async def ask(http: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> Events:
    """The events of one answer. Raises RuntimeError with what the engine says instead."""
    async with http.post(url + PATH, json=body) as response:
        raw = await response.read()
        if response.status != 200:
            raise RuntimeError(raw.decode(errors="replace"))
    return [orjson.loads(data) for data in data_of(raw)]
