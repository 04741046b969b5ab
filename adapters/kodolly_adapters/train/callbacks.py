"""What happens around the steps: progress, metrics.jsonl, marks on checkpoints, and a stop that keeps the work."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from kodolly_adapters.errors import RecipeError

from . import checkpoints, curve

EVERY = 10.0  # seconds between lines where standard error is no terminal
DRAWN_EVERY = 60.0  # seconds between pictures of the curve


class Progress(TrainerCallback):  # type: ignore[misc]
    """A bar where a person watches, a line now and then where nobody does: loss, tokens a second, time left.

    `tokens` gives the real (unpadded) tokens of the run so far, all processes together.
    """

    def __init__(self, tokens: Callable[[], int], *, show: bool) -> None:
        self._tokens = tokens
        self._show = show
        self._bar: Any = None
        self._started = self._said = 0.0
        self._first = (0, 0)  # (step, tokens) when this process began
        self._loss = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = self._said = time.monotonic()
        self._first = (state.global_step, self._tokens())
        if self._show and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc="training", unit="step"
            )

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        if "loss" in logs:
            self._loss = f"loss {logs['loss']:.3f}"
        if "eval_loss" in logs:
            self._say(state, f"held-out loss {logs['eval_loss']:.4f}")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)
            self._bar.set_postfix_str(f"{self._loss}, {self._rate():,.0f} tokens/s", refresh=False)
        elif self._show and time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            self._say(
                state, f"{self._loss}, {self._rate():,.0f} tokens/s, {self._left(state)} left"
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _rate(self) -> float:
        seconds = time.monotonic() - self._started
        return (self._tokens() - self._first[1]) / seconds if seconds else 0.0

    def _left(self, state: Any) -> str:
        done = state.global_step - self._first[0]
        seconds = (time.monotonic() - self._started) * (state.max_steps - state.global_step)
        minutes, rest = divmod(round(seconds / max(done, 1)), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"

    def _say(self, state: Any, text: str) -> None:
        if not self._show:
            return
        line = f"kodolly train: step {state.global_step}/{state.max_steps}, {text}"
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()


class Metrics(TrainerCallback):  # type: ignore[misc]
    """metrics.jsonl, one line a step or evaluation; after a kill it goes on where the checkpoint was."""

    def __init__(self, path: Path, title: str) -> None:
        self._path = path
        self._title = title
        self._drawn = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        unfinished = self._path.with_name(f".{self._path.name}.tmp")
        unfinished.write_text("".join(map(_line, state.log_history)), encoding="utf-8")
        os.replace(unfinished, self._path)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        if not math.isfinite(logs.get("loss", 0.0)):
            raise RecipeError(
                f"train.learning_rate: the loss is {logs['loss']} at step {state.global_step}: give a "
                'lower rate, more train.warmup_ratio, or train.precision "bf16" instead of "fp16"'
            )
        if state.is_world_process_zero:
            with self._path.open("a", encoding="utf-8") as sink:
                sink.write(_line({**logs, "step": state.global_step}))

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and time.monotonic() - self._drawn >= DRAWN_EVERY:
            self.draw()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.draw()

    def draw(self) -> None:
        """Draw the curve as it is now."""
        self._drawn = time.monotonic()
        curve.draw(curve.read(self._path), self._path.with_name("curve.png"), self._title)


class Marks(TrainerCallback):  # type: ignore[misc]
    """Marks each checkpoint when all processes have written their part of it, then removes the oldest."""

    def __init__(self, folder: Path, keep: int, wait: Callable[[], None]) -> None:
        self._folder = folder
        self._keep = keep
        self._wait = wait

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        best = self._folder / f"{checkpoints.PREFIX}{state.best_global_step}"
        if state.best_global_step and best.is_dir():
            state.best_model_checkpoint = str(best)  # the folder may have moved since

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._wait()
        if not state.is_world_process_zero:
            return
        checkpoints.finish(self._folder / f"{checkpoints.PREFIX}{state.global_step}")
        best = Path(state.best_model_checkpoint) if state.best_model_checkpoint else None
        checkpoints.rotate(self._folder, self._keep, best)


class Stop(TrainerCallback):  # type: ignore[misc]
    """Ends the run after a step, with a checkpoint, once Ctrl-C or SIGTERM has come. A second one ends it at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the signals while the block runs."""
        caught = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._on_signal) for number in caught}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if _anywhere(self.asked):
            self.asked = True
            control.should_save = control.should_training_stop = True


def _anywhere(flag: bool) -> bool:
    """Whether any process says so: all must stop after the same step."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return flag
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    count = torch.tensor(int(flag), device=device)
    torch.distributed.all_reduce(count)
    return bool(count.item())


def _line(record: dict[str, Any]) -> str:
    ordered = {"step": record.get("step")} | record
    return json.dumps(ordered, ensure_ascii=False) + "\n"
