"""Where vLLM gets the logits processor that forces token ids, so that a request can be replayed.

vLLM refuses to start with a logits processor in some modes. There it starts without, and the log says so.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

log = logging.getLogger(__name__)

FLAG = "--logits-processors"
PROCESSOR = "kodolly_forced_ids:ForcedIds"
PLUGINS = Path(__file__).parent / "vllm_plugins"
SPECULATIVE = "vLLM takes no logits processors with speculative decoding"
SPECULATIVE_FLAGS = re.compile(r"--spec(-|ulative-config)|-sc\b")
NO_TOKENS = "a model that generates no text has no tokens to force"
OTHER_MACHINES = "the engine's other machines would need the same file"
# Flags, some with a value, under which the processor is not loaded.
CONFLICTS = {
    ("--config", None): "a file of vLLM's options may name logits processors of its own",
    ("--convert", None): NO_TOKENS,
    ("--distributed-executor-backend", "ray"): OTHER_MACHINES,
    ("--nnodes", None): OTHER_MACHINES,
    ("--runner", "pooling"): NO_TOKENS,
    ("--task", None): NO_TOKENS,
}


@dataclass(frozen=True, slots=True)
class Forcing:
    """`flags` load the processor, beside the operator's own; `extra_args`: the rest of the operator's.

    No flags: the engine cannot have it.
    """

    flags: tuple[str, ...]
    extra_args: tuple[str, ...]


def forcing(extra_args: Sequence[str]) -> Forcing:
    """How vLLM is started with the processor. `extra_args`: the operator's own flags for it."""
    if (reason := _conflict(extra_args)) is not None:
        log.info(
            "no logits processor of ours is loaded, since %s: this engine cannot go on with the tool calls"
            " and structured answers of another one",
            reason,
        )
        return Forcing((), tuple(extra_args))
    own, others = _taken_out(extra_args)
    return Forcing((FLAG, PROCESSOR, *own), tuple(others))


def forcing_env(parent: Mapping[str, str]) -> dict[str, str]:
    """Where the engine's Python finds the processor's file, beside what `parent` names."""
    paths = [str(PLUGINS), parent.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def _conflict(extra_args: Sequence[str]) -> str | None:
    """Why the processor cannot be loaded beside these flags; None if it can."""
    for word, following in zip_longest(extra_args, extra_args[1:], fillvalue=""):
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        if SPECULATIVE_FLAGS.match(flag):
            return SPECULATIVE
        for key in ((flag, value if equals else following), (flag, None)):
            if key in CONFLICTS:
                return CONFLICTS[key]
    return None


def _taken_out(extra_args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The operator's own logits processors, and all other words: vLLM reads the last flag only."""
    own: list[str] = []
    others: list[str] = []
    is_list = False
    for word in extra_args:
        flag, equals, value = word.partition("=")
        if flag.replace("_", "-") == FLAG:
            own += [value] if equals else []
            is_list = not equals
        elif is_list and not word.startswith("-"):
            own.append(word)
        else:
            is_list = False
            others.append(word)
    return own, others
