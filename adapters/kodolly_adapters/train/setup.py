"""Everything about a run that is known before a weight is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kodolly_adapters.card import config_sha256
from kodolly_adapters.errors import RecipeError
from kodolly_templates import Template, TemplateError, TokenizerTemplate, get_template, load
from kodolly_templates.tokenizer import TOKENIZER

from . import hardware, keys, model, schedule, tokens
from .hardware import Hardware
from .prepare import Prepared, prepare
from .recipe import Recipe
from .schedule import Schedule

Report = Callable[[int, int], None]


@dataclass(slots=True)
class Run:
    """A run ready to load its weights. `train` and `held_out` are packed where the recipe says so."""

    recipe: Recipe
    template: Template | TokenizerTemplate
    config: Any
    stored_dtype: str  # of the base's files, "float16" for Polyglot
    use_cache: bool  # the base's; training turns the model's off
    tokenizer: Any
    repairs: tuple[str, ...]  # of the tokenizer
    new_tokens: tuple[int, ...]
    prepared: Prepared
    train: Any  # datasets.Dataset
    held_out: Any  # datasets.Dataset, or None
    schedule: Schedule
    machine: Hardware
    precision: str
    decisive: dict[str, Any] = field(default_factory=dict)  # what two runs must share to be one


def set_up(recipe: Recipe, cache: Path, report: Report = lambda done, total: None) -> Run:
    """Config, tokenizer, data and schedule of a run; prepared data is kept in `cache`. Raises a UserError."""
    machine = hardware.look()
    precision = hardware.precision(recipe.train.precision, machine)
    model.check_method(recipe, machine)
    _check_optimizer(recipe)
    dialect = None if recipe.template == TOKENIZER else _dialect(recipe)
    config = model.load_config(recipe)
    _check_length(recipe, config)
    words = tokens.load_tokenizer(recipe)
    template = dialect or _own_template(recipe, words.tokenizer)
    new_tokens = keys.add_keys(words.tokenizer, template, recipe)
    prepared = prepare(recipe, words.tokenizer, template, cache, report)
    packed = _pack(prepared.train, recipe, prepared.folder / "train")
    held_out = prepared.validation
    if held_out is not None:
        held_out = _pack(held_out, recipe, prepared.folder / "validation")
    micro = hardware.micro_batches(
        recipe.train.batch_size,
        recipe.train.accumulation,
        recipe.data.max_length,
        packing=recipe.data.packing,
        flash=machine.flash,
    )
    steps = schedule.plan(
        recipe.train, len(packed), held_out=held_out is not None, micro=micro, world=machine.world
    )
    run = Run(
        recipe=recipe,
        template=template,
        config=config,
        use_cache=bool(getattr(config, "use_cache", True)),
        stored_dtype=str(getattr(config, "dtype", None) or "float32").removeprefix("torch."),
        tokenizer=words.tokenizer,
        repairs=words.repairs,
        new_tokens=new_tokens,
        prepared=prepared,
        train=packed,
        held_out=held_out,
        schedule=steps,
        machine=machine,
        precision=precision,
    )
    run.decisive = _decisive(run)
    return run


def _dialect(recipe: Recipe) -> Template:
    try:
        return get_template(recipe.template)
    except TemplateError as error:
        raise RecipeError(f"template: {error}") from None


def _own_template(recipe: Recipe, tokenizer: Any) -> TokenizerTemplate:
    """The base's chat template, read as a worker will read it beside the trained weights."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        try:
            found = load(folder, TOKENIZER)
        except TemplateError:
            raise RecipeError(
                f'template = "{TOKENIZER}": the tokenizer of {recipe.base} has no chat template. '
                'Choose a dialect, such as "dolly-ko"'
            ) from None
    assert isinstance(found, TokenizerTemplate)
    return found


def _check_optimizer(recipe: Recipe) -> None:
    from transformers.training_args import OptimizerNames

    known = [str(name.value) for name in OptimizerNames]
    if recipe.train.optimizer not in known:
        raise RecipeError(
            f"train.optimizer: transformers has no {recipe.train.optimizer!r}; it has {', '.join(known)}"
        )


def _check_length(recipe: Recipe, config: Any) -> None:
    longest = getattr(config, "max_position_embeddings", None)
    if longest and recipe.data.max_length > longest:
        raise RecipeError(
            f"data.max_length: {recipe.data.max_length} tokens are more than the base's context of {longest}"
        )


def _pack(dataset: Any, recipe: Recipe, stem: Path) -> Any:
    """Several sequences to one of at most max_length, each still apart (seq_lengths); once a machine."""
    plain = dataset.select_columns(["input_ids", "labels"])
    if not recipe.data.packing:
        return plain
    from datasets.utils.logging import disable_progress_bar
    from filelock import FileLock
    from trl import pack_dataset

    disable_progress_bar()
    seed, length = recipe.train.seed, recipe.data.max_length
    file = f"{stem}-packed-{length}-{seed}-{recipe.data.repeat}.arrow"
    # Neighbours in a file are alike (one source after another); a packed sequence should not be.
    mixed = plain.shuffle(seed=seed, keep_in_memory=True)
    with FileLock(f"{file}.lock"):
        return pack_dataset(mixed, length, "bfd", {"cache_file_name": file})


def _decisive(run: Run) -> dict[str, Any]:
    recipe = run.recipe.model_dump(mode="json")
    for part in ("study", "notes"):
        del recipe[part]
    return {
        "recipe": recipe,
        "base_config_sha256": config_sha256(run.config),
        "data": [{"sha256": file.sha256, "bytes": file.size} for file in run.prepared.files],
        "tokenizer_repairs": list(run.repairs),
        "new_tokens": list(run.tokenizer.convert_ids_to_tokens(list(run.new_tokens))),
        "processes": run.machine.world,
        "precision": run.precision,
    }
