"""kodolly-ko-8m's data: good rows, questions made by rule, and a held-out tenth."""

import hashlib
import itertools
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from support.shared_data import SHARED_DATA, needs_shared_data

from kodolly_adapters.files import sha256
from kodolly_ko import EXAMPLE, corpus, judge, reading, variations, words

ROWS = corpus.own_rows()
MORE = corpus.more_rows()
CATEGORIES = {
    "brainstorming",
    "classification",
    "closed_qa",
    "creative_writing",
    "general_qa",
    "information_extraction",
    "open_qa",
    "summarization",
}
POLITE = re.compile(r"(니다|요)[.!?]$")
HANGUL = re.compile("[가-힣ㄱ-ㅎ]")


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What write_corpus makes of our own rows and two very small sources."""
    place = tmp_path_factory.mktemp("sources")
    chatbot, prose = place / "chat.csv", place / "prose.txt"
    chatbot.write_text("Q,A,label\r\n가나?,다라요.,0\r\n가나?,다라요.,0\r\n마바?,사아요.,2   \r\n")
    prose.write_text("첫 줄입니다.\n" * 200)
    out = tmp_path_factory.mktemp("corpus")
    corpus.write_corpus(corpus.Sources(chatbot, prose), out)
    return out


@pytest.fixture(scope="module")
def files(corpus_folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of those files, by file name."""
    return {
        path.name: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in corpus_folder.iterdir()
    }


def test_every_row_is_a_dolly_row() -> None:
    """Four texts, one of Dolly's categories, nothing around them and no template's key inside."""
    for row in [*ROWS, *MORE]:
        assert list(row) == ["instruction", "context", "response", "category"], row
        assert row["category"] in CATEGORIES, row
        assert row["instruction"], row
        assert all(text == text.strip() for text in row.values()), row
        assert not any("###" in text or "<|" in text for text in row.values()), row


def test_no_question_is_asked_twice() -> None:
    """Instruction and context together stand once, so that no question has two answers."""
    questions = [(row["instruction"], row["context"]) for row in [*ROWS, *MORE]]
    assert len(set(questions)) == len(questions) >= 3000


def test_answers_are_short_polite_korean() -> None:
    """Each answer is Korean, ends in a polite form and stays under a hundred characters."""
    for row in [*ROWS, *MORE]:
        assert HANGUL.search(row["instruction"]) or row["instruction"].isascii(), row
        assert judge.is_korean(row["response"]) or "http" in row["response"], row
        assert POLITE.search(row["response"]), row
        assert len(row["response"]) <= 100, row
        assert len(row["instruction"]) + len(row["context"]) <= 200, row


def test_rows_with_a_context_say_so_in_their_category() -> None:
    """A context comes with the three categories that read one, and with no other."""
    reading_categories = {"closed_qa", "information_extraction", "summarization"}
    assert all(bool(row["context"]) == (row["category"] in reading_categories) for row in ROWS)


def test_a_tenth_is_held_out(files: dict[str, list[dict[str, Any]]]) -> None:
    """Held-out questions are about a tenth and in neither training file, alone or in a dialogue."""
    heldout = [row for row in files["heldout.jsonl"] if "source" not in row]
    assert 0.05 < len(heldout) / len(ROWS) < 0.15
    questions = {(row["instruction"], row["context"]) for row in heldout}
    for row in files["tune.jsonl"]:
        if "messages" not in row:
            assert (row["instruction"], row["context"]) not in questions
    texts = [row["text"] for row in [*files["pretrain.jsonl"], *files["talk.jsonl"]]]
    lines = {line for text in texts for line in text.split("\n")}
    lines |= {text for row in files["tune.jsonl"] for text in _user_turns(row)}
    alone = {row["instruction"] for row in heldout if not row["context"]}
    assert not alone & lines


def _user_turns(row: dict[str, Any]) -> list[str]:
    return [m["content"] for m in row.get("messages", []) if m["role"] == "user"]


def test_held_out_people_are_in_no_training_file(files: dict[str, list[dict[str, Any]]]) -> None:
    """The people of the held-out reading questions appear in no training file."""
    training_text = json.dumps(
        [files[f"{n}.jsonl"] for n in ("pretrain", "talk", "tune")], ensure_ascii=False
    )
    assert [name for name in words.HELD_OUT_NAMES if name in training_text] == []


def test_the_same_sources_give_the_same_bytes(corpus_folder: Path) -> None:
    """On any machine and in any run."""
    made = {path.name: sha256(path) for path in corpus_folder.iterdir()}
    assert made == {
        "heldout.jsonl": "c1d982f27f1f80b536da75cb25dfffe7bb055ac6c02f77a1346e8db65bbf25af",
        "pretrain.jsonl": "266d4eb821b956d2754f4b3f9d4475f0414a2c4dc51e8c797b09ae0d86f06738",
        "talk.jsonl": "aef72095a1462aea951aac8e3539d8b425055c3f59353ad70038d7d44a82f488",
        "tune.jsonl": "a91bda7ca0ce3b866c0282cdacf13473d4c04392cfe9cfc25dfbe03ec992c641",
    }


@needs_shared_data
def test_the_rows_are_those_the_adapter_was_trained_on() -> None:
    """With the two public sets the tuning rows have the very hash that the adapter's card records."""
    chatbot = SHARED_DATA / "chatbot_data" / "ChatbotData.csv"
    prose = SHARED_DATA / "text_ko" / "libreoffice_help_ko.txt"
    rows = corpus.tuning_rows(corpus.Sources(chatbot, prose))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    card = json.loads((EXAMPLE / "adapter" / "model_card.json").read_text(encoding="utf-8"))
    assert hashlib.sha256(lines.encode()).hexdigest() in card["source"]["data_sha256"]


def test_sources_are_read_as_they_come(files: dict[str, list[dict[str, Any]]]) -> None:
    """ChatbotData's odd labels and repeated pairs are read once each; prose becomes documents."""
    rows = [row for row in files["tune.jsonl"] if row.get("instruction") in ("가나?", "마바?")]
    assert [row["response"] for row in rows] == ["다라요."]
    texts = [row["text"] for row in files["pretrain.jsonl"]]
    assert sum("사아요." in text for text in texts) >= 1
    assert any("첫 줄입니다.\n첫 줄입니다." in text for text in texts)


def test_reading_answers_stand_in_their_text() -> None:
    """The beginning of every answer made by rule is in its text, and the question has one answer."""
    for row in itertools.islice(reading.reading_rows(7), 500):
        text = row["context"] or row["instruction"]
        assert row["response"][:1] in text, row
        assert judge.is_korean(row["response"]), row


def test_sums_are_right() -> None:
    """Every sum's answer is its arithmetic, and no result is negative."""
    signs = {"더하기": int.__add__, "빼기": int.__sub__, "곱하기": int.__mul__}
    rows = reading.sums()
    assert len({row["instruction"] for row in rows}) == len(rows)
    for row in rows:
        match = re.fullmatch(r"(\d) (\S+) (\d)[은는] (\d+)입니다\.", row["response"])
        assert match, row
        left, word, right, result = match.groups()
        assert signs[word](int(left), int(right)) == int(result), row


@pytest.mark.parametrize(
    ("word", "expected"), [("책", "책을"), ("나무", "나무를"), ("서울", "서울을"), ("API", "API를")]
)
def test_particles_follow_the_last_syllable(word: str, expected: str) -> None:
    """A closed syllable takes the one form, an open one or no syllable the other."""
    assert words.object_of(word) == expected


def test_prompts_are_no_training_rows() -> None:
    """About forty fixed prompts, none of them phrased as a row of ours is."""
    prompts = judge.prompts()
    assert len(prompts) >= 40
    rows = {variations.normalise_core(row["instruction"]) for row in [*ROWS, *MORE]}
    blind = judge.prompts("blind")
    questions = {variations.normalise(prompt["instruction"]) for prompt in [*prompts, *blind]}
    assert not questions & rows
    assert all(prompt["expected"] for prompt in prompts)


def test_no_training_file_asks_a_fixed_prompt(files: dict[str, list[dict[str, Any]]]) -> None:
    """Not with other spaces or marks either, nor behind an opening; one that reads a context has its own."""
    alone = [prompt for prompt in judge.prompts() if not prompt["context"]]
    prompts = {variations.normalise(prompt["instruction"]) for prompt in alone}
    texts = [row["text"] for row in [*files["pretrain.jsonl"], *files["talk.jsonl"]]]
    lines = {line for text in texts for line in text.split("\n")}
    lines |= {row["instruction"] for row in files["tune.jsonl"] if "instruction" in row}
    lines |= {text for row in files["tune.jsonl"] for text in _user_turns(row)}
    assert [line for line in lines if variations.normalise_core(line) in prompts] == []


def test_another_way_to_ask_asks_the_same() -> None:
    """What is asked about stays in every variation; endings, particles, openings and marks do not."""
    draw = random.Random(1)
    questions = {variations.vary(draw, "일본의 수도는 어디인가요?") for _ in range(300)}
    assert len(questions) > 40
    assert all("일본" in text and "수도" in text and "어디" in text for text in questions)


@pytest.mark.parametrize(
    ("question", "is_reserved"),
    [
        ("코돌리야, 우리나라 수도가  어디지", True),
        ("혹시 우리나라 수도가 어디지?", True),
        ("우리나라 산이 어디지?", False),
    ],
)
def test_a_prompt_in_disguise_is_recognised(question: str, is_reserved: bool) -> None:
    """Openings, spaces and punctuation do not make a fixed prompt another question."""
    assert corpus.is_reserved(question) == is_reserved


def test_every_question_of_a_passage_has_one_answer() -> None:
    """Two sentences never answer the same question differently."""
    for text, pairs in itertools.islice(reading.passages(3), 500):
        answers: dict[str, str] = {}
        for question, answer in pairs:
            assert answers.setdefault(variations.normalise_core(question), answer) == answer, text


def test_made_up_people_are_many() -> None:
    """Hundreds of names in a thousand draws, none held out."""
    draw = random.Random(5)
    names = {words.person(draw) for _ in range(1000)}
    assert len(names) > 700
    assert not names & set(words.HELD_OUT_NAMES)


def test_chance_is_one_sentence_of_the_text() -> None:
    """A text of two sentences is guessed right half of the time, of one always."""
    two = {"instruction": "누구?", "context": "하나입니다. 둘입니다."}
    one = {"instruction": "하나입니다. 누구?", "context": ""}
    assert judge.chance([two, two, one]) == 2.0
