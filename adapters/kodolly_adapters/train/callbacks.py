"""What happens around the steps: time and memory, progress, metrics.jsonl, marked checkpoints, and an early end."""

from __future__ import annotations

import io
import json
import math
import resource
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback

from kodolly_adapters.errors import RecipeError
from kodolly_adapters.files import write_bytes
from kodolly_adapters.terminal import Progress

from . import run_folder

DRAW_INTERVAL = 60.0  # seconds between pictures of the curve
SMOOTHING = 0.9  # weight of the past in the smoothed loss
GIB = 2**30


class Clock:
    """Where the time of this process goes: `seconds` of "step", "eval" and "save", apart from one another.

    A step is timed from the reading of its batches until its loss is known, when a GPU has done all of it. `tokens`
    are real ones, without padding, of all processes together.
    """

    def __init__(self) -> None:
        self.seconds = {"step": 0.0, "eval": 0.0, "save": 0.0}
        self.step_seconds: list[float] = []
        self.tokens = 0
        self._begun, self._tokens_before = 0.0, 0

    @contextmanager
    def time(self, kind: str) -> Iterator[None]:
        """Adds the block's seconds to `kind`."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[kind] += time.perf_counter() - begun

    def begin_step(self, tokens: int) -> None:
        """A step begins; the run has trained on `tokens` so far."""
        self._begun, self._tokens_before = time.perf_counter(), tokens

    def end_step(self, tokens: int) -> dict[str, float]:
        """The step has ended: its figures for metrics.jsonl."""
        seconds, trained = time.perf_counter() - self._begun, tokens - self._tokens_before
        self.step_seconds.append(seconds)
        self.seconds["step"] += seconds
        self.tokens += trained
        return {
            "step_seconds": round(seconds, 6),
            "tokens_per_second": round(trained / max(seconds, 1e-9), 2),
        }

    @property
    def rate(self) -> float:
        """Tokens a second of all steps so far."""
        return self.tokens / max(self.seconds["step"], 1e-9)


def peak_memory() -> dict[str, int]:
    """Bytes that this process held at most: "peak_memory_bytes", and on a GPU "peak_gpu_bytes" of its own memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with suppress(
        OSError, StopIteration
    ):  # Linux tells it without the memory of the process that started this one
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        peak = int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    figures = {"peak_memory_bytes": peak}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        figures["peak_gpu_bytes"] = torch.cuda.max_memory_reserved()
    return figures


class StepProgress(TrainerCallback):  # type: ignore[misc]
    """A bar or lines: steps of this process, loss, tokens a second, memory, time left; another for an evaluation."""

    def __init__(self, clock: Clock, *, show: bool) -> None:
        self._clock = clock
        self._progress = Progress("train", unit="step", show=show)
        self._evaluation = Progress("train: evaluation", unit="sequence", show=show)
        self._loss = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        steps = state.max_steps - state.global_step
        self._progress.say(f"training begins: {steps:,} steps")
        self._progress.restart(steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            self._loss = f"loss {logs['loss']:.3f}"
        if "eval_loss" in logs:
            step = f"step {state.global_step}/{state.max_steps}"
            self._progress.say(f"{step}, held-out loss {logs['eval_loss']:.4f}")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress.note(self._figures())
        self._progress.add(1)

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        if not self._evaluation.done:  # the first batch of an evaluation
            self._progress.close()
            self._evaluation.restart(len(eval_dataloader.dataset))
            self._evaluation.note(self._figures())
        left = (self._evaluation.total or 0) - self._evaluation.done
        self._evaluation.add(min(args.eval_batch_size * args.world_size, left))

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._evaluation.close()
        self._evaluation.restart(None)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress.close()

    def _figures(self) -> str:
        peak = peak_memory()
        gpu = f", {peak['peak_gpu_bytes'] / GIB:.1f} GiB of the GPU" if len(peak) > 1 else ""
        memory = f"{peak['peak_memory_bytes'] / GIB:.1f} GiB{gpu}"
        return ", ".join(filter(None, [self._loss, f"{self._clock.rate:,.0f} tokens/s", memory]))


class Metrics(TrainerCallback):  # type: ignore[misc]
    """metrics.jsonl, one line a step or evaluation, and curve.png; after a kill both go on from the checkpoint."""

    def __init__(self, path: Path, title: str) -> None:
        self._path = path
        self._title = title
        self._last_drawing = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            write_bytes(self._path, "".join(map(_line, state.log_history)).encode())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **kwargs: Any) -> None:
        if not math.isfinite(logs.get("loss", 0.0)):
            raise RecipeError(
                f"train.learning_rate: the loss is {logs['loss']} at step {state.global_step}: give a "
                'lower rate, more train.warmup_ratio, or train.precision "bf16" instead of "fp16"'
            )
        if state.is_world_process_zero:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line({**logs, "step": state.global_step}))

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if time.monotonic() - self._last_drawing >= DRAW_INTERVAL:
            self._draw(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._draw(state)

    def _draw(self, state: Any) -> None:
        if state.is_world_process_zero:
            self._last_drawing = time.monotonic()
            draw_curve(state.log_history, self._path.with_name("curve.png"), self._title)


class Checkpoints(TrainerCallback):  # type: ignore[misc]
    """Marks each checkpoint when all processes have written their part of it, then removes the oldest.

    transformers' own `save_total_limit` would remove the old before the new has its mark.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        best = Path(args.output_dir, f"{run_folder.PREFIX}{state.best_global_step}")
        if state.best_global_step and best.is_dir():
            state.best_model_checkpoint = str(best)  # the folder may have moved since

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(args.output_dir)
            run_folder.finish_checkpoint(folder / f"{run_folder.PREFIX}{state.global_step}")
            run_folder.rotate_checkpoints(folder, self._keep, state.best_model_checkpoint)


class Stop(TrainerCallback):  # type: ignore[misc]
    """Ends the run after a step, with a checkpoint, once Ctrl-C or SIGTERM has come. A second one ends it at once."""

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the signals while the block runs."""
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._on_signal) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        flag = torch.tensor(int(self.requested), device=PartialState().device)
        if reduce(flag, "sum").item():  # in any process: all must stop after the same step
            self.requested = control.should_save = control.should_training_stop = True


def draw_curve(records: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw transformers' log history into the PNG `path`: the losses and, below, the learning rate."""
    import pandas  # type: ignore[import-untyped]
    from matplotlib.figure import Figure

    columns = ["step", "loss", "eval_loss", "learning_rate"]
    frame = pandas.DataFrame(records).reindex(columns=columns).set_index("step").astype(float)
    loss, held_out, rate = (frame[name].dropna() for name in columns[1:])
    figure = Figure(figsize=(8, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    upper.plot(loss, color="0.7", linewidth=0.8, label="training, each step")
    upper.plot(loss.ewm(alpha=1 - SMOOTHING).mean(), color="C0", label="training, smoothed")
    if not held_out.empty:
        upper.plot(held_out, color="C1", marker="o", label="held-out rows")
    upper.set(title=title, ylabel="loss (nats a token)")
    upper.legend()
    lower.plot(rate, color="C2")
    lower.set(xlabel="step", ylabel="learning rate")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_bytes(path, picture.getvalue())


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps({"step": record.get("step"), **record}, ensure_ascii=False) + "\n"
