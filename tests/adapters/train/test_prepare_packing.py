"""A packed batch is the unpacked rows: the same loss, the same gradients, no row sees another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import make_tiny_llama, make_tiny_neox
from support.tuning_rows import dolly, recipe, tokenizer, write_lines

from kodolly_adapters.train.dataset import prepare
from kodolly_adapters.train.encode import IGNORED
from kodolly_templates import get_template

LIMIT = 192
ROWS = [
    dolly("수도는 어디인가요?", "서울입니다."),
    dolly("무엇이 흐르나요?", "한강이 흐릅니다.", "서울에는 한강이 흐르고 다리가 여러 개 있습니다."),
    dolly("인사해 보세요.", "안녕하세요? 오늘은 날씨가 맑습니다."),
    dolly("What is the capital of Korea?", "Seoul."),
    dolly("김치찌개는?", "김치와 두부를 넣고 끓이면 됩니다."),
]  # fmt: skip


def packed_dataset(folder: Path) -> tuple[Any, Any]:
    """(rows as prepared, the same as TRL packs them)."""
    from trl.data_utils import pack_dataset

    chosen = recipe(write_lines(folder / "rows.jsonl", ROWS), max_length=LIMIT)
    plain = prepare(chosen, tokenizer("neox"), get_template("koalpaca"), folder / "cache").train
    columns = plain.select_columns(["input_ids", "labels"])
    return plain, pack_dataset(columns, LIMIT, "bfd")


def loss_and_gradients(model: Any, batches: list[dict[str, Any]]) -> tuple[float, dict[str, Any]]:
    """The mean loss of all learned tokens of all batches, and each parameter's gradient."""
    from torch.nn.functional import cross_entropy

    model.zero_grad()
    learned = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches)
    total = 0.0
    for batch in batches:
        asked = {name: batch[name] for name in ("input_ids", "position_ids") if name in batch}
        # Both as the trainer does: no attention mask beside position ids, and never a cache.
        logits = model(**asked, use_cache=False).logits
        summed = cross_entropy(
            logits[0, :-1], batch["labels"][0, 1:], ignore_index=IGNORED, reduction="sum"
        )
        (summed / learned).backward()
        total += float(summed.detach()) / learned
    return total, {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [make_tiny_neox, make_tiny_llama], ids=["neox", "llama"])
def test_packed_is_unpacked(make: Any, attention: str, tmp_path: Path) -> None:
    """TRL's packed and collated batches of prepared rows give the loss and gradients of the rows alone."""
    import torch
    from transformers import AutoModelForCausalLM
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    plain, packed = packed_dataset(tmp_path)
    assert max(map(len, packed["seq_lengths"])) > 1, "nothing was packed"
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    together = [collate([row]) for row in packed]
    assert all("attention_mask" not in batch for batch in together)
    alone = [{name: torch.tensor([row[name]]) for name in ("input_ids", "labels")} for row in plain]
    model = AutoModelForCausalLM.from_pretrained(
        str(make(tmp_path / "model")), attn_implementation=attention
    ).train()

    loss, gradients = loss_and_gradients(model, together)
    expected, references = loss_and_gradients(model, alone)

    assert loss == pytest.approx(expected, abs=1e-5)
    for name, reference in references.items():
        scale = float(reference.abs().max()) or 1.0
        assert torch.allclose(gradients[name] / scale, reference / scale, atol=1e-5), name


def test_the_check_sees_contamination(tmp_path: Path) -> None:
    """Without the reset of positions the loss does differ: the check above can fail."""
    from transformers import AutoModelForCausalLM
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    _, packed = packed_dataset(tmp_path)
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    batches = [collate([row]) for row in packed]
    torn = [{name: batch[name] for name in ("input_ids", "labels")} for batch in batches]
    model = AutoModelForCausalLM.from_pretrained(str(make_tiny_neox(tmp_path / "model"))).train()

    loss, _ = loss_and_gradients(model, batches)
    contaminated, _ = loss_and_gradients(model, torn)

    assert abs(loss - contaminated) > 1e-3


def test_packing_loses_no_learned_token(tmp_path: Path) -> None:
    """Every prepared token and label stands in a packed sequence once, row by row in one piece."""
    plain, packed = packed_dataset(tmp_path)

    found = []
    for row in packed:
        start = 0
        for length in row["seq_lengths"]:
            stop = start + length
            found.append((row["input_ids"][start:stop], row["labels"][start:stop]))
            start = stop
    assert sorted(found) == sorted(zip(plain["input_ids"], plain["labels"], strict=True))
