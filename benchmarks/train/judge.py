"""How a tuned model ends its answers: losses on held-out rows, and answers written greedily and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kodolly_templates import Template

MOST = 48  # tokens of an answer; those of the rows take 2 to 31
TOP_P = 0.92  # Dolly's own pipeline draws so, at temperature 1
DRAWN = 1  # answers a row

Row = dict[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Held-out figures of one way."""

    way: str
    answer: float  # nats a token of the answers, without their ends
    ending: float  # nats of a whole end: the end key's tokens and the end token
    last: float  # nats of the end token alone
    greedy: float  # share of greedy answers that end by themselves
    drawn: float  # of drawn ones
    sample: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """Ids and labels of one row, and how many of its last tokens are the answer's end."""

    ids: list[int]
    labels: list[int]
    ending: int


class Writer:
    """Rows in one template's words for one tokenizer."""

    def __init__(self, tokenizer: Any, template: Template) -> None:
        self._tokenizer = tokenizer
        self._template = template
        special = template.special_tokens
        self.end = tokenizer.convert_tokens_to_ids(special[0] if special else tokenizer.eos_token)

    def encode(self, row: Row) -> Encoded:
        """The row as training reads it."""
        eos = "" if self._template.special_tokens else self._tokenizer.eos_token
        training = self._template.training([*_asked(row), _answered(row)], eos)
        ids, learned = training.encode(self._tokenizer)
        if ids[-1] != self.end:
            raise ValueError(f"a row does not end with its end token: {training.text[-20:]!r}")
        labels = [token if told else -100 for token, told in zip(ids, learned, strict=True)]
        ending = self._tokenizer(self._template.end + eos, add_special_tokens=False)["input_ids"]
        return Encoded(ids, labels, len(ending))

    def prompt(self, row: Row) -> str:
        """What the model is given to answer the row."""
        return self._template.prompt(_asked(row))

    def decode(self, ids: Any) -> str:
        """Ids as text, special tokens included."""
        return str(self._tokenizer.decode(ids))

    def together(self, rows: Sequence[Row]) -> Any:
        """The prompts as one batch, filled up on the left."""
        return self._tokenizer(
            [self.prompt(row) for row in rows], return_tensors="pt", padding=True,
            padding_side="left", return_token_type_ids=False, add_special_tokens=False,
        )  # fmt: skip


def judged(way: str, net: Any, tokenizer: Any, template: Template, rows: Sequence[Row]) -> Outcome:
    """Figures of a tuned model on `rows`, none of which it was trained on."""
    import torch

    writer = Writer(tokenizer, template)
    parts = [_losses(net, writer.encode(row)) for row in rows]
    answers = torch.cat([body for body, _ in parts])
    endings = [end for _, end in parts]
    greedy = _written(net, writer, rows, do_sample=False)
    torch.manual_seed(1)
    drawn = _written(net, writer, list(rows) * DRAWN, do_sample=True, top_p=TOP_P, top_k=0)
    return Outcome(
        way,
        float(answers.mean()),
        float(torch.stack([end.sum() for end in endings]).mean()),
        float(torch.stack([end[-1] for end in endings]).mean()),
        _ended(greedy, writer.end),
        _ended(drawn, writer.end),
        writer.decode(greedy[0]),
    )


def _losses(net: Any, row: Encoded) -> tuple[Any, Any]:
    """Nats of the answer's tokens and of its end's, each of shape (tokens,)."""
    import torch

    with torch.inference_mode():
        logits = net(input_ids=torch.tensor([row.ids])).logits[0, :-1]
    labels = torch.tensor(row.labels[1:])
    every = torch.nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=-100)
    learned = every[labels != -100]
    return learned[: -row.ending], learned[-row.ending :]


def _written(net: Any, writer: Writer, rows: Sequence[Row], **how: Any) -> list[list[int]]:
    """Ids of an answer to each row, through its end token where it has one."""
    import torch

    asked = writer.together(rows)
    with torch.inference_mode():
        made = net.generate(
            **asked, max_new_tokens=MOST, eos_token_id=writer.end, pad_token_id=0, **how
        )
    answers = made[:, asked["input_ids"].shape[1] :].tolist()
    return [ids[: ids.index(writer.end) + 1] if writer.end in ids else ids for ids in answers]


def _ended(answers: Sequence[Sequence[int]], end: int) -> float:
    return sum(ids[-1] == end for ids in answers) / len(answers)


def _asked(row: Row) -> list[dict[str, Any]]:
    asked = {"role": "user", "content": row["instruction"]}
    return [asked | ({"context": row["context"]} if row["context"] else {})]


def _answered(row: Row) -> dict[str, Any]:
    return {"role": "assistant", "content": row["response"]}
