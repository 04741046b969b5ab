"""A logits processor for vLLM: an answer begins with given tokens, whatever the model would say.

A request that is made again after its engine died carries the tokens that its client already has in
`vllm_xargs: {"kd_ids": [...]}`. Grammar, tool parser, penalties and stop strings see them come one by
one, as they did the first time.

This file runs inside vLLM, in vLLM's environment (`--logits-processors kodolly_forced_ids:ForcedIds`):
it imports nothing of KoDolly. vLLM has two model runners with a class of processors each. This one
is of both classes, since only vLLM knows which of them it will use.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

try:
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as SecondProcessor
except ImportError:  # a vLLM whose second runner has no such class
    SecondProcessor = object

FIELD = "kd_ids"


class ForcedIds(LogitsProcessor, SecondProcessor):  # type: ignore[misc]
    """Forces the first tokens of those answers whose request names them."""

    def __init__(self, vllm_config: Any, *runner: Any) -> None:
        """`runner`: (device, pin_memory) of the first model runner, (request states,) of the second."""
        # By row of the first runner's batch: the tokens, and the answer's own, which grow.
        self._rows: dict[int, tuple[list[int], list[int]]] = {}
        # By the second runner's slots.
        self._slots: dict[int, list[int]] = {}
        self._states = runner[0] if len(runner) == 1 else None

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raises ValueError, which vLLM answers with a 400, for anything but a list of token ids."""
        ids = (sampling_params.extra_args or {}).get(FIELD, [])
        if not isinstance(ids, list) or any(type(each) is not int or each < 0 for each in ids):
            raise ValueError(f"vllm_xargs: {FIELD} must be a list of token ids")

    def is_argmax_invariant(self) -> bool:
        """A forced token is seldom the likeliest one."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follows the first runner's batch."""
        process_dict_updates(self._rows, batch_update, _forced_and_made)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """A request takes a slot of the second runner. Returns whether any token is forced."""
        self._slots.pop(req_idx, None)
        if ids := _ids_of(sampling_params):
            self._slots[req_idx] = ids
        return bool(ids)

    def apply(self, logits: Any, ctx: Any = None) -> Any:
        """The logits (rows, V), in which a forced token is the only one left. `ctx`: of the second runner."""
        if ctx is None:
            for row, (ids, made) in self._rows.items():
                _force(logits, row, ids, len(made))
        elif self._slots:
            lengths, prompts = ctx.seq_lens_upper_bound_np, self._states.prompt_len.np  # type: ignore[union-attr]
            for row, slot in enumerate(ctx.idx_mapping_np.tolist()):
                if slot in self._slots:
                    _force(logits, row, self._slots[slot], int(lengths[row]) - int(prompts[slot]))
        return logits


def _force(logits: Any, row: int, ids: list[int], position: int) -> None:
    """Leaves one token in a row, if there is one for this position of the answer.

    A position below 0 is inside the prompt; an id beyond the vocabulary is not forced.
    """
    if 0 <= position < len(ids) and ids[position] < logits.shape[-1]:
        logits[row] = float("-inf")
        logits[row, ids[position]] = 0.0


def _forced_and_made(
    params: Any, _prompt: list[int] | None, made: list[int]
) -> tuple[list[int], list[int]] | None:
    ids = _ids_of(params)
    return (ids, made) if ids else None


def _ids_of(params: Any) -> list[int]:
    return list((params.extra_args or {}).get(FIELD) or ())
