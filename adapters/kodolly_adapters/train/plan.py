"""The plan of a recipe as plain values: memory for each way to run, what fits which GPU, and time and cost there."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain, product
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from kodolly_adapters.bases import local_folder

from .estimate import GIB, Values, flops, memory, setup_of, trainable
from .recipe import Recipe
from .shapes import Shapes, find_base, shapes_of, table

STUDY_ROWS = 923_590
CHARACTERS_PER_ROW = 800  # with the template's keys; assumed for the study's mix of sets
TEMPLATE_CHARACTERS = 100  # keys and introduction that the template adds to a row
TEXTS = ("instruction", "context", "response", "text", "content")  # of a row and its messages
SAMPLE = 2000  # rows that are read to know their length; up to twice as many, spread over all files
TOKENIZER = "tokenizer.json"
TOKENIZED = 500  # of these, in which tokens are counted too
LARGE = 100 << 20  # bytes of files whose reading takes long enough to say so
LARGEST_BATCH = 1024  # sequences; more are no use
# Shares of one GPU's speed that remain; assumed. FSDP waits for layers, QLoRA unpacks weights.
SPEED_LEFT = {"none": 1.0, "ddp": 0.95, "fsdp": 0.85, "qlora": 0.75}
ASSUMED_SHARE = 0.4  # of the peak of a device that gpus.toml does not have
FILLED = {True: 0.98, False: 0.5}  # places of a sequence that hold a token: packed, padded; assumed


def gpus() -> dict[str, Values]:
    """The kinds of GPU in gpus.toml, by name; `memory` in bytes."""
    return {
        name: {"name": name, **values, "memory": int(values["memory"] * GIB)}
        for name, values in table("gpus.toml").items()
    }


def plan(
    recipe: Recipe,
    counts: Sequence[int] = (1, 4, 8),
    kinds: Sequence[str] = ("a100-80", "h100"),
    *,
    rows: int | None = None,
    tokens_per_row: float | None = None,
    price: float | None = None,
    mfu: float | None = None,
    taken: Sample | None = None,
) -> Values:
    """The plan as `--json` prints it: sizes in bytes, arithmetic in FLOP a token, prices in USD.

    For each of `counts` GPUs of each of `kinds`. None takes what the recipe and gpus.toml say; `price` is USD an
    hour of one GPU, `mfu` a share; `taken` is a sample of the recipe's training rows. Raises UserError where the base
    or the recipe does not allow a plan.
    """
    base = find_base(recipe.base, recipe.revision)
    base |= _tokens_per_character(recipe.base, taken.lines if taken else [])
    shapes, setup = shapes_of(base["config"]), setup_of(recipe)
    data = _rows(recipe, base["tokens_per_character"], rows, tokens_per_row, taken)
    runs = [run for count in counts for run in on_gpus(recipe, count)]
    if setup["method"] == "lora":
        qlora, several = setup | {"method": "qlora"}, [count for count in counts if count > 1]
        runs += [qlora, *(qlora | {"gpus": n, "strategy": "fsdp"} for n in several[-1:])]
    columns, machines = [], []
    for run in runs:
        way = {key: run[key] for key in ("method", "strategy", "gpus")}
        columns.append(way | {"memory": memory(shapes, run)})
    for kind, count in product(kinds, counts):
        gpu, setups = gpus()[kind], on_gpus(recipe, count)
        rate = gpu["price"] if price is None else price
        rates = {"price": rate, "utilisation": mfu or gpu["utilisation"]}
        best = choose(shapes, setups, gpu)
        machine = {
            "setup": best,
            "memory": best and memory(shapes, best),
            "cost": best and cost(shapes, best, gpu | rates, data),
            "ways": ways(shapes, setups, gpu),
        }
        machines.append({"gpu": gpu, "gpus": count, **rates, **machine})
    return {
        "recipe": recipe.model_dump(),
        "base": base,
        "parameters": shapes.parameters,
        "trainable": trainable(shapes, setup),
        "shapes": asdict(shapes),
        "flops_per_token": flops(shapes, setup),
        "rows": data,
        "memory": columns,
        "machines": machines,
    }


def row_characters(recipe: Recipe, measured: Values | None) -> float:
    """Characters of a row with the template's keys; the study's where there is no sample."""
    if measured is None:
        return float(CHARACTERS_PER_ROW)
    keys = TEMPLATE_CHARACTERS if recipe.data.format == "rows" else 0
    return float(measured["characters"] + keys)


def on_gpus(recipe: Recipe, count: int) -> list[Values]:
    """The recipe on `count` GPUs, once for each strategy, its own first. DeepSpeed is planned as ZeRO-3, as FSDP is."""
    setup, own = setup_of(recipe), recipe.distributed.strategy
    if count == 1:
        return [setup]
    order = ("fsdp", "ddp") if own in ("fsdp", "deepspeed") else ("ddp", "fsdp")
    return [setup | {"gpus": count, "strategy": strategy} for strategy in order]


def cost(shapes: Shapes, setup: Values, gpu: Values, rows: Values) -> dict[str, float]:
    """What the run takes on its GPUs, which are `gpu`; evaluation and saving come on top.

    {"tokens_per_second" of all GPUs, without padding, "steps", "tokens" of the whole run, "hours", "price" in USD}
    """
    peak, work, count = gpu[setup["precision"]], flops(shapes, setup)["total"], setup["gpus"]
    left = SPEED_LEFT[setup["strategy"]] * SPEED_LEFT.get(setup["method"], 1)
    filled, steps = FILLED[setup["packing"]], rows["max_steps"]
    speed = peak * gpu["utilisation"] * left * count / work * filled
    a_step = count * setup["batch"] * setup["length"] * setup["accumulation"] * filled
    tokens = rows["tokens"] * rows["epochs"] if steps < 0 else steps * a_step
    hours = tokens / speed / 3600
    return {
        "tokens_per_second": speed,
        "steps": ceil(tokens / a_step) if steps < 0 else steps,
        "tokens": round(tokens),
        "hours": hours,
        "price": hours * count * gpu["price"],
    }


def compare(recipe: Recipe, answer: Values, measured: Values, mfu: float | None) -> Values:
    """What the plan says of this machine, and what `run.measure` measured there: {"device", "planned", "measured", ...}.

    Both have "step_seconds", "tokens_per_second", "steps", "hours" and "memory". "mfu" is the share of the peak that
    was reached, for --mfu.
    """
    shapes = shapes_of(answer["base"]["config"])
    setup = setup_of(recipe) | {"precision": "fp32" if measured["precision"] == "fp32" else "bf16"}
    share = mfu or ASSUMED_SHARE
    device = {setup["precision"]: measured["peak"], "utilisation": share, "price": 0}
    run = cost(shapes, setup, device, answer["rows"])
    planned = {
        "step_seconds": run["hours"] * 3600 / max(run["steps"], 1),
        "tokens_per_second": run["tokens_per_second"],
        "steps": run["steps"],
        "hours": run["hours"],
        "memory": memory(shapes, setup)["total"],
    }
    keys = ("step_seconds", "tokens_per_second", "steps", "memory")
    figures = {key: measured[key] for key in keys} | {"hours": measured["seconds"] / 3600}
    return {
        "device": measured["device"],
        "precision": measured["precision"],
        "peak": measured["peak"],
        "planned": planned,
        "measured": figures,
        "mfu": share * measured["tokens_per_second"] / run["tokens_per_second"],
    }


def fits(shapes: Shapes, setup: Values, gpu: Values) -> bool:
    """Whether the setup's fullest moment is within one GPU's memory."""
    return bool(memory(shapes, setup)["total"] <= gpu["memory"])


def largest(shapes: Shapes, setup: Values, gpu: Values) -> int:
    """The largest batch (sequences a GPU) that fits: 0 for none, LARGEST_BATCH at most."""
    sizes = range(1, LARGEST_BATCH + 1)
    return bisect_left(sizes, True, key=lambda n: not fits(shapes, setup | {"batch": n}, gpu))


def ways(shapes: Shapes, setups: list[Values], gpu: Values) -> list[Values]:
    """The setups, then the first of them by each method that needs less memory.

    Each with its largest batch with ("checkpointed") and without ("plain") gradient checkpointing.
    """
    first = setups[0]
    cheaper = {"full": ["lora", "qlora"], "lora": ["qlora"]}.get(first["method"], [])
    return [
        {
            "method": run["method"],
            "strategy": run["strategy"],
            "checkpointed": largest(shapes, run | {"checkpointing": True}, gpu),
            "plain": largest(shapes, run | {"checkpointing": False}, gpu),
        }
        for run in [*setups, *(first | {"method": method} for method in cheaper)]
    ]


def choose(shapes: Shapes, setups: list[Values], gpu: Values) -> Values | None:
    """The first of the setups that fits; else one that is changed as little as possible; else None.

    Tried in turn: the batch, half of it with twice the accumulation down to one, checkpointing, then QLoRA for LoRA.
    """
    own = setups[0]
    for method in [own["method"], *(["qlora"] if own["method"] == "lora" else [])]:
        for checkpointing in dict.fromkeys([own["checkpointing"], True]):
            for setup in setups:
                run = setup | {"method": method, "checkpointing": checkpointing}
                while not fits(shapes, run, gpu) and run["batch"] % 2 == 0:
                    run["batch"] //= 2
                    run["accumulation"] *= 2
                if fits(shapes, run, gpu):
                    return run
    return None


class Sample(NamedTuple):
    """Rows as JSON lines, evenly spread over files that hold `rows` of them."""

    rows: int
    lines: list[bytes]


def sample(paths: Sequence[str]) -> Sample | None:
    """A sample of all the files together: JSON Lines or Parquet; None where one is another kind, or not here.

    The files are read from end to end. Each time that twice SAMPLE rows are at hand, every other one is dropped and
    half as many are taken from then on.
    """
    rows, step, lines = 0, 1, []
    if not all(Path(path).suffix in READERS and Path(path).is_file() for path in paths):
        return None
    items = (READERS[Path(path).suffix](path) for path in paths)
    for read, item in chain.from_iterable(items):
        if rows % step == 0:
            lines.append(read(item))
            if len(lines) == 2 * SAMPLE:
                lines, step = lines[::2], 2 * step
        rows += 1
    return Sample(rows, lines)


def _jsonl(path: str) -> Iterator[tuple[Callable[[Any], bytes], Any]]:
    """(what makes a JSON line of a row, the row as the file has it), of each row that is not blank."""

    def line(row: bytes) -> bytes:
        return row.removeprefix(b"\xef\xbb\xbf").rstrip() + b"\n"

    with Path(path).open("rb") as rows:
        yield from ((line, row) for row in rows if not row.isspace())


def _parquet(path: str) -> Iterator[tuple[Callable[[Any], bytes], Any]]:
    """The same of a Parquet file."""
    from pyarrow import parquet

    def line(row: Any) -> bytes:
        return json.dumps(row.to_pylist()[0], ensure_ascii=False, default=str).encode() + b"\n"

    for batch in parquet.ParquetFile(path).iter_batches(batch_size=1_000):
        yield from ((line, batch.slice(number, 1)) for number in range(len(batch)))


READERS = {".jsonl": _jsonl, ".parquet": _parquet}


def _rows(
    recipe: Recipe,
    tokens_per_character: float,
    rows: int | None,
    per_row: float | None,
    taken: Sample | None,
) -> Values:
    """The training rows: what the flags say, else what the recipe's files hold, else the study's.

    "per_row" is tokens a row after what is too long was cut, "tokens" those of one epoch.
    """
    data, train = recipe.data, recipe.train
    measured: Values | None = None
    if taken and (sizes := [size for line in taken.lines if (size := _characters(line))]):
        mean = sum(sizes) / len(sizes)
        measured = {"rows": taken.rows, "sampled": len(sizes), "characters": mean}
    rows = rows or (taken.rows if measured and taken else STUDY_ROWS)
    rows = min(rows, data.max_rows or rows)
    per_row = per_row or row_characters(recipe, measured) * tokens_per_character
    if data.format == "rows":
        per_row = min(per_row, data.max_length)
    return {
        "rows": rows,
        "per_row": per_row,
        "epochs": train.epochs,
        "repeat": data.repeat,
        "max_steps": train.max_steps,
        "tokens": round(rows * per_row * data.repeat),
        "measured": measured,
    }


def _tokens_per_character(base: str, lines: Sequence[bytes]) -> Values:
    """{"tokens_per_character"} of these rows where the base's tokenizer.json is here, else {}."""
    folder = local_folder(base)
    texts = [text for line in lines[:TOKENIZED] for text in _texts(line)]
    if not folder or not (folder / TOKENIZER).is_file() or not any(texts):
        return {}
    try:
        from tokenizers import Tokenizer
    except ImportError:  # plan needs no extra
        return {}
    encoded = Tokenizer.from_file(str(folder / TOKENIZER)).encode_batch(texts)
    return {"tokens_per_character": sum(map(len, encoded)) / sum(map(len, texts))}


def _characters(line: bytes) -> int:
    """Characters of the texts that a template writes; 0 for a line that is no row."""
    return sum(map(len, _texts(line)))


def _texts(line: bytes) -> list[str]:
    try:
        row = json.loads(line)
    except ValueError:
        return []
    parts = [row, *(row.get("messages") or ())] if isinstance(row, dict) else []
    texts = [part.get(key) for part in parts if isinstance(part, dict) for key in TEXTS]
    return [text for text in texts if isinstance(text, str)]
