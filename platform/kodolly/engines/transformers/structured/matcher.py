"""One answer's place in a grammar: which tokens may come next."""

from __future__ import annotations

from typing import Any


class GrammarFault(Exception):
    """A token that the grammar does not allow, or a grammar that costs too much to follow."""


class Matcher:
    """Follows one answer, token by token. For one thread at a time."""

    def __init__(self, compiled: Any, size: int) -> None:
        """`compiled`: an llguidance.LLMatcher that no answer has moved. `size`: tokens it knows."""
        import numpy as np

        self._place = compiled.deep_copy()
        self._bits = np.zeros(4 * ((size + 31) // 32), dtype=np.uint8)

    def allowed(self, size: int) -> Any:
        """A tensor (size,), true for each token that may come next. Raises GrammarFault."""
        import numpy as np
        import torch

        self._place.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        bits = np.unpackbits(self._bits, count=min(size, 8 * self._bits.nbytes), bitorder="little")
        mask = torch.from_numpy(bits).bool()
        return mask if len(mask) == size else torch.nn.functional.pad(mask, (0, size - len(mask)))

    def accept(self, token: int) -> None:
        """Moves on by one token. Raises GrammarFault for one that is not allowed."""
        self._place.consume_token(token)
        self._check()

    @property
    def is_done(self) -> bool:
        """Whether the answer is whole, and nothing can follow."""
        return bool(self._place.is_stopped())

    def _check(self) -> None:
        if self._place.is_error():
            raise GrammarFault(self._place.get_error().partition("\n")[0][:300])
