"""An engine as numbers: vLLM's prefix cache to the block, its batching to the step.

Blocks of 16 tokens, known by the hash of all that is before them; only whole blocks are shared,
never the whole prompt; those nobody uses are kept until their place is needed, the one longest
unused first, of one request its last. What a step takes is a straight line in its tokens.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.affinity.chats import Message

BLOCK = 16


@dataclass(frozen=True)
class Size:
    """What one engine can do. Seconds: a step's base, a prefilled token, a decoding request."""

    blocks: int
    max_running: int = 256
    step_tokens: int = 2048
    step: float = 0.012
    prefill: float = 0.00005
    decode: float = 0.0001


@dataclass
class Request:
    """One turn on its way through an engine."""

    prompt: list[int]
    prompt_tokens: int
    whole: list[int]
    answer_tokens: int
    arrived: float
    done: Callable[[], None]
    first_token: float | None = None
    hit: int = 0
    private: int = 0
    to_prefill: int = 0
    to_decode: int = 0


def block_hashes(messages: Sequence[Message]) -> tuple[list[int], int]:
    """Hashes of the whole blocks of some messages in a row, and how many tokens they are."""
    hashes: list[int] = []
    running, total = 0, 0
    content: list[tuple[int, int, int]] = []
    room = BLOCK
    for message in messages:
        start = 0
        total += message.tokens
        while start < message.tokens:
            end = min(message.tokens, start + room)
            content.append((message.number, start, end))
            room -= end - start
            start = end
            if not room:
                running = hash((running, *content))
                hashes.append(running)
                content, room = [], BLOCK
    return hashes, total


class PrefixCache:
    """The blocks of one engine: in use, or unused and kept."""

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self._used: Counter[int] = Counter()
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._private = 0

    def take(self, request: Request) -> bool:
        """Takes the blocks of a request's prompt and answer; False if they do not fit now."""
        most = (request.prompt_tokens - 1) // BLOCK
        hit = 0
        for block in request.prompt[:most]:
            if block not in self._used and block not in self._kept:
                break
            hit += 1
        tokens = request.prompt_tokens + request.answer_tokens
        private = -(-tokens // BLOCK) - len(request.prompt)
        more = sum(block not in self._used for block in request.prompt) + private
        if len(self._used) + self._private + more > self._blocks:
            return False
        for block in request.prompt:
            self._kept.pop(block, None)
            self._used[block] += 1
        self._private += private
        self._evict()
        request.hit, request.private = hit * BLOCK, private
        return True

    def give_back(self, request: Request) -> None:
        """The request has ended: its blocks, the answer's too, are kept for others."""
        self._private -= request.private
        for block in reversed(request.whole):
            if self._used[block] > 1:
                self._used[block] -= 1
                continue
            self._used.pop(block, None)
            self._kept[block] = None
            self._kept.move_to_end(block)
        self._evict()

    def _evict(self) -> None:
        while len(self._used) + len(self._kept) + self._private > self._blocks:
            self._kept.popitem(last=False)


class Engine:
    """One worker's engine; `step` does one batch and says how long it took."""

    def __init__(self, name: str, size: Size) -> None:
        self.name = name
        self.size = size
        self.cache = PrefixCache(size.blocks)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.prompt_tokens = self.cached_tokens = self.work_tokens = self.served = 0

    @property
    def load(self) -> int:
        """Requests running and waiting."""
        return len(self.waiting) + len(self.running)

    def step(self, now: float) -> tuple[float, list[Request]]:
        """One batch: seconds it takes, and the requests that end with it."""
        self._admit()
        budget, prefilled, decoding = self.size.step_tokens, 0, 0
        for request in self.running:
            if request.to_prefill:
                part = min(request.to_prefill, budget)
                request.to_prefill -= part
                budget -= part
                prefilled += part
            else:
                decoding += 1
        seconds = self.size.step + prefilled * self.size.prefill + decoding * self.size.decode
        return seconds, self._decoded(now + seconds)

    def _decoded(self, now: float) -> list[Request]:
        """Every request whose prompt is done gets a token; those that have all are returned."""
        ended: list[Request] = []
        for request in self.running:
            if request.to_prefill:
                continue
            if request.first_token is None:
                request.first_token = now
            request.to_decode -= 1
            if request.to_decode <= 0:
                ended.append(request)
        for request in ended:
            self.running.remove(request)
            self.cache.give_back(request)
        return ended

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.size.max_running:
            request = self.waiting[0]
            if not self.cache.take(request):
                break
            self.waiting.popleft()
            request.to_prefill = request.prompt_tokens - request.hit
            request.to_decode = request.answer_tokens
            self.running.append(request)
            self.served += 1
            self.prompt_tokens += request.prompt_tokens
            self.cached_tokens += request.hit
            self.work_tokens += request.to_prefill + request.answer_tokens
