"""Windows around an answer: whole sentences, within the budget, with the answer in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from kodolly_adapters.convert.cleaning.tokens import ExactCounter, TokenCounter, counter
from kodolly_adapters.convert.markdown.window import cut
from kodolly_adapters.errors import OptionError

ESTIMATE = TokenCounter()


class Characters(TokenCounter):
    """One token a character: budgets can be counted by eye."""

    def count(self, text: str) -> int:
        """The length."""
        return len(text)

    def chars(self, tokens: int) -> int:
        """The same."""
        return tokens


def window(text: str, answer: str, budget: int) -> str:
    """The window around the first place of the answer."""
    at = text.index(answer)
    return cut(text, at, at + len(answer), budget, Characters())


PROSE = "첫 문장이다. 둘째 문장이다. 셋째는 답이다. 넷째 문장이다. 다섯째 문장이다."
TABLE = "| 해 | 상 |\n| --- | --- |\n" + "\n".join(
    f"| {year} | 상{year} |" for year in range(2000, 2010)
)

CASES = {
    "all of a short text": (PROSE, "답", 200, PROSE),
    "one sentence": (PROSE, "답", 12, "셋째는 답이다."),
    "both sides": (PROSE, "답", 30, "둘째 문장이다. 셋째는 답이다. 넷째 문장이다."),
    "what the left does not need goes right": (
        PROSE,
        "첫",
        28,
        "첫 문장이다. 둘째 문장이다. 셋째는 답이다.",
    ),
    "what the right does not need goes left": (
        PROSE,
        "다섯째",
        31,
        "셋째는 답이다. 넷째 문장이다. 다섯째 문장이다.",
    ),
    "numbers are no borders": ("앞이다. 값은 3.14이다. 뒤다.", "값은", 12, "값은 3.14이다."),
    "dates are no borders": (
        "앞이다. 날은 2019. 3. 1. 이다. 뒤다.",
        "1.",
        20,
        "날은 2019. 3. 1. 이다.",
    ),
    "initials are no borders": ("앞이다. J. K. 롤링이다. 뒤다.", "롤링", 13, "J. K. 롤링이다."),
    "quoted sentences go on": ('앞이다. "간다."라고 했다. 뒤다.', "했다", 14, '"간다."라고 했다.'),
    "no space after the stop": ("앞이다.답이다.뒤다.", "답", 5, "답이다."),
    "questions and cries": ("누구야? 답이야! 아니요. 네.", "답", 6, "답이야!"),
    "the section's heading": (
        "# 쪽\n\n글이다.\n\n## 절\n\n앞 문장이다. 길고 긴 문장이다. 답이 여기에 있는 문장이다.",
        "답",
        26,
        "## 절\n\n답이 여기에 있는 문장이다.",
    ),
    "no heading without its section": (
        "답이다.\n\n## 다음\n\n길고 긴 다음 절의 문장이다.",
        "답",
        14,
        "답이다.",
    ),
    "an answer in a heading": ("## 절\n\n글이다.", "절", 30, "## 절\n\n글이다."),
    "the table's header": (
        TABLE,
        "상2007",
        50,
        "| 해 | 상 |\n| --- | --- |\n| 2007 | 상2007 |",
    ),
    "not amid another table": (
        TABLE + "\n\n답은 여기 있는 이 문장이다. 끝이다.",
        "답은",
        60,
        "답은 여기 있는 이 문장이다. 끝이다.",
    ),
    "a long answer is never cut": (
        "앞이다.\n\n아주 긴 답이다. 둘째다.\n\n뒤다.",
        "긴 답이다. 둘째",
        5,
        "아주 긴 답이다. 둘째다.",
    ),
    "a long sentence is cut at spaces": (
        "하나 둘 셋 넷 다섯 여섯 일곱 여덟 아홉 열",
        "다섯",
        9,
        "넷 다섯 여섯",
    ),
}


@pytest.mark.parametrize(("text", "answer", "budget", "context"), CASES.values(), ids=CASES.keys())
def test_windows(text: str, answer: str, budget: int, context: str) -> None:
    """Each rule of the window, by a text of its own."""
    assert window(text, answer, budget) == context


def test_a_long_table_answer_takes_its_rows_and_the_header() -> None:
    """Rows that alone pass the budget come with the header and nothing else."""
    rows = "| 2003 | 상2003 |\n| 2004 | 상2004 |"
    assert window(TABLE, rows, 10) == "| 해 | 상 |\n| --- | --- |\n" + rows


sentences = st.lists(
    st.sampled_from(
        [
            "그는 서울에서 태어났다.",
            "정말요?",
            "값은 3.14이다!",
            "길이는 1.5 km였다.",
            "| 가 | 나 |",
            "- 항목",
            "## 절",
            "끝",
        ]
    ),
    min_size=1,
    max_size=40,
)


@given(sentences, st.sampled_from([" ", "\n", "\n\n"]), st.integers(1, 200), st.data())
def test_a_window_holds_the_answer_within_the_budget(
    parts: list[str], joint: str, budget: int, data: st.DataObject
) -> None:
    """Any answer is in its window, which keeps to the budget unless the answer's own lines are longer."""
    text = joint.join(parts)
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    context = cut(text, start, end, budget, ESTIMATE)
    answer = text[start:end].strip()
    assert answer in context
    if ESTIMATE.count(answer) < budget:
        assert ESTIMATE.count(context) <= budget


@given(st.text(max_size=200), st.integers(1, 60), st.data())
def test_any_text_gives_a_window(text: str, budget: int, data: st.DataObject) -> None:
    """Nothing raises, and the window holds the answer."""
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    context = cut(text, start, end, budget, Characters())
    assert text[start:end].strip() in context


@given(
    st.lists(st.sampled_from(["그는 갔다.", "정말요?", "값은 3.14이다."]), min_size=3, max_size=30),
    st.data(),
)
def test_a_window_of_whole_sentences_begins_and_ends_with_one(
    parts: list[str], data: st.DataObject
) -> None:
    """Where the answer's sentence fits the budget no sentence is cut, at either end."""
    text = " ".join(parts)
    number = data.draw(st.integers(0, len(parts) - 1))
    start = len(" ".join(parts[:number])) + bool(number)
    context = cut(text, start, start + 2, 20, Characters())
    left = context
    while left:
        part = next(part for part in parts if left.startswith(part))
        left = left[len(part) :].lstrip()


def test_tokens_are_estimated_by_default() -> None:
    """0.7 tokens a character, rounded up."""
    assert counter(None).count("가" * 11) == 8


def a_tokenizer(folder: Path) -> Path:
    """A tokenizer.json that makes a token of each word."""
    tokenizer = Tokenizer(models.WordLevel({"가": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_tokens_of_a_given_tokenizer_are_exact(tmp_path: Path) -> None:
    """A folder or the file itself; windows keep to its count."""
    folder = a_tokenizer(tmp_path)
    for path in (folder, folder / "tokenizer.json"):
        exact = counter(path)
        assert isinstance(exact, ExactCounter)
        assert exact.count("가 나 다") == 3
        at = PROSE.index("답")
        assert cut(PROSE, at, at + 1, 6, exact) == "둘째 문장이다. 셋째는 답이다. 넷째 문장이다."


def test_a_missing_or_broken_tokenizer_is_an_option_error(tmp_path: Path) -> None:
    """Both name the file."""
    with pytest.raises(OptionError, match=r"no file .*tokenizer\.json"):
        counter(tmp_path)
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    with pytest.raises(OptionError, match=r"broken\.json"):
        counter(broken)
