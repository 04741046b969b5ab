"""Sources: one table of records and the drafts and rejections they become; nothing is passed over."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kodolly_adapters.convert.cleaning.rules import meaning, modes_of
from kodolly_adapters.convert.options import Options
from kodolly_adapters.convert.reading.layouts import layout_of
from kodolly_adapters.convert.reading.plan import recognise
from kodolly_adapters.convert.reading.source import UNKNOWN, Source
from kodolly_adapters.convert.schema import Draft, Exchange, Rejection
from kodolly_adapters.convert.sources import BY_NAME, SOURCES
from kodolly_adapters.errors import OptionError

PLAIN = Options()


def talk(*turns: tuple[str, str], id: str = "a1_0") -> dict[str, Any]:  # noqa: A002
    return {"id": id, "conversations": [{"from": who, "value": text} for who, text in turns]}


def qa(question: str, *answers: tuple[str, int], **more: Any) -> dict[str, Any]:
    records = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": "q1", "question": question, "answers": records, **more}


def article(*qas: dict[str, Any], context: str = "서울은 수도이다.") -> dict[str, Any]:
    return {"title": "서울", "paragraphs": [{"context": context, "qas": list(qas)}]}


def row(asks: str, context: str, answer: str, **more: Any) -> Draft:
    return Draft(asks, context, answer, **more)


def pair(asks: str, answer: str, context: str = "", **more: Any) -> Draft:
    """A draft of the conversation that `talk` makes."""
    defaults: dict[str, Any] = {"id": "a1_0", "group": "a1", "units": 2}
    return Draft(asks, context, answer, **defaults | more)


def rejection(reason: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return reason, more


TWO = talk(("human", "하나?"), ("gpt", "일."), ("user", "둘?"), ("bing", "이."))
AGAIN = talk(("human", "안녕"), ("human", "하나?"), ("gpt", "일."), ("gpt", "끝."))
WITH_SYSTEM = talk(
    ("system", "짧게."), ("human", "하나?"), ("gpt", "일."), ("human", "둘?"), ("gpt", "이.")
)

FIRST_PAIR = (("human", "하나?"), ("gpt", "일."))

TABLE: list[tuple[str, str, dict[str, Any], Options, list[Any]]] = [
    # KoVicuna
    ("a row a pair", "kovicuna", TWO, PLAIN, [pair("하나?", "일."), pair("둘?", "이.", turn=1)]),
    (
        "the study's literal table",
        "kovicuna",
        TWO,
        Options(kovicuna_roles="as-written"),
        [pair("일.", "하나?"), pair("이.", "둘?", turn=1)],
    ),
    (
        "earlier pairs in the context",
        "kovicuna",
        WITH_SYSTEM,
        Options(history=1),
        [
            pair("하나?", "일.", "짧게.", units=3, notes=("system-turn",)),
            pair("둘?", "이.", "짧게.\n사용자: 하나?\n챗봇: 일.", turn=1),
        ],
    ),
    (
        "a system message without history is rejected",
        "kovicuna",
        WITH_SYSTEM,
        PLAIN,
        [rejection("system-turn"), pair("하나?", "일."), pair("둘?", "이.", turn=1)],
    ),
    (
        "a system message without text is rejected",
        "kovicuna",
        talk(("system", " "), ("system", "\u200b"), ("human", "하나?"), ("gpt", "일.")),
        Options(history=1),
        [rejection("system-turn", units=2), pair("하나?", "일.")],
    ),
    (
        "a system message in a dialogue",
        "kovicuna",
        WITH_SYSTEM,
        Options(conversations=True),
        [
            pair(
                "둘?",
                "이.",
                turn=1,
                units=5,
                history=(Exchange("하나?", "일."),),
                system="짧게.",
                system_units=1,
            )
        ],
    ),
    (
        "empty pairs are left out of the history",
        "kovicuna",
        talk(*FIRST_PAIR, ("human", "둘?"), ("gpt", " "), ("human", "셋?"), ("gpt", "삼.")),
        Options(history=1),
        [
            pair("하나?", "일."),
            pair("둘?", " ", "사용자: 하나?\n챗봇: 일.", turn=1),
            pair("셋?", "삼.", "사용자: 하나?\n챗봇: 일.", turn=2),
        ],
    ),
    (
        "a row a dialogue",
        "kovicuna",
        TWO,
        Options(conversations=True),
        [pair("둘?", "이.", turn=1, units=4, history=(Exchange("하나?", "일."),))],
    ),
    (
        "same speaker joined",
        "kovicuna",
        AGAIN,
        PLAIN,
        [pair("안녕\n하나?", "일.\n끝.", units=4, notes=("same-role",))],
    ),
    (
        "same speaker dropped",
        "kovicuna",
        AGAIN,
        Options(rules={"same-role": "drop"}),
        [rejection("same-role"), rejection("same-role"), pair("안녕", "일.", notes=("same-role",))],
    ),
    (
        "same speaker left alone",
        "kovicuna",
        AGAIN,
        Options(rules={"same-role": "off"}),
        [
            rejection("question-without-answer"),
            pair("하나?", "일."),
            rejection("answer-without-question", turn=1),
        ],
    ),
    (
        "starts with gpt, ends with human",
        "kovicuna",
        talk(("gpt", "영."), ("human", "하나?"), ("ChatGPT", "일."), ("human", "둘?")),
        PLAIN,
        [
            rejection("answer-without-question"),
            pair("하나?", "일."),
            rejection("question-without-answer", turn=1),
        ],
    ),
    (
        "an unknown speaker parts a question from its answer",
        "kovicuna",
        talk(("human", "하나?"), ("tool", "x"), ("gpt", "일.")),
        PLAIN,
        [
            rejection("question-without-answer"),
            rejection("unknown-role"),
            rejection("answer-without-question"),
        ],
    ),
    ("no turns", "kovicuna", talk(), PLAIN, [rejection("no-turns")]),
    ("null turns", "kovicuna", {"conversations": None}, PLAIN, [rejection("no-turns")]),
    ("only system", "kovicuna", talk(("System", "짧게.")), PLAIN, [rejection("system-turn")]),
    # Alpaca
    (
        "v1.0",
        "koalpaca",
        {"instruction": "합은?", "input": "1, 2", "output": "3"},
        PLAIN,
        [row("합은?", "1, 2", "3")],
    ),
    (
        "v1.1 has no input but a url",
        "koalpaca",
        {"instruction": "왜?", "output": "그냥.", "url": "u"},
        PLAIN,
        [row("왜?", "", "그냥.")],
    ),
    (
        "null input",
        "kovicuna-alpaca",
        {"instruction": "왜?", "input": None, "output": "그냥."},
        PLAIN,
        [row("왜?", "", "그냥.")],
    ),
    ("no output", "koalpaca", {"instruction": "왜?", "id": 0}, PLAIN, [rejection("no-output")]),
    ("no instruction", "koalpaca", {"output": "3"}, PLAIN, [rejection("no-instruction")]),
    # KorQuAD 1.0
    (
        "an article",
        "korquad1",
        article(qa(" 수도는? ", ("서울", 0))),
        PLAIN,
        [row(" 수도는? ", "서울은 수도이다.", "서울", id="q1", group="서울")],
    ),
    (
        "dolly's categories",
        "korquad1",
        article(qa("수도는?", ("서울", 0))),
        Options(categories="dolly"),
        [row("수도는?", "서울은 수도이다.", "서울", category="closed_qa", id="q1", group="서울")],
    ),
    (
        "a bare paragraph",
        "korquad1",
        {"qas": [qa("수도는?", ("서울", 0), ("수도", 4))], "context": "서울은 수도이다."},
        PLAIN,
        [row("수도는?", "서울은 수도이다.", "서울", id="q1", group="서울은 수도이다.")],
    ),
    (
        "a wrong answer_start is noted, a missing answer rejected",
        "korquad1",
        article(qa("수도는?", ("서울", 3)), qa("어디?", ("부산", 0))),
        PLAIN,
        [
            row(
                "수도는?",
                "서울은 수도이다.",
                "서울",
                id="q1",
                group="서울",
                notes=("answer-start",),
            ),
            rejection("answer-not-found", turn=1),
        ],
    ),
    (
        "questions without an answer",
        "korquad1",
        article(qa("왜?"), qa("왜?", ("서울", 0), is_impossible=True), qa("왜?", ("", 0))),
        PLAIN,
        [
            rejection("no-answer"),
            rejection("impossible-question", turn=1),
            rejection("no-answer", turn=2),
        ],
    ),
    ("no questions", "korquad1", article(), PLAIN, [rejection("no-questions")]),
    # Dolly
    (
        "keeps its category",
        "dolly",
        {"instruction": "왜?", "context": "", "response": "그냥.", "category": "brainstorming"},
        PLAIN,
        [row("왜?", "", "그냥.", category="brainstorming")],
    ),
    (
        "no such category",
        "dolly",
        {"instruction": "왜?", "response": "그냥.", "category": "잡담"},
        PLAIN,
        [row("왜?", "", "그냥.", notes=("unknown-category",))],
    ),
    ("no response", "dolly", {"instruction": "왜?"}, PLAIN, [rejection("no-output")]),
    # Chatbot data
    (
        "a line",
        "chatbot-data",
        {"Q": "안녕", "A": "반가워요.", "label": "2   "},
        PLAIN,
        [row("안녕", "", "반가워요.")],
    ),
    ("a short line", "chatbot-data", {"Q": "안녕", "A": None}, PLAIN, [rejection("no-output")]),
    # HRC
    (
        "the corpus",
        "hrc",
        {"번호": "7", "질의": "왜?", "상담례, 결정례 기반 답변": "법.", "ChatGPT API 답변": "음."},
        PLAIN,
        [row("왜?", "", "법.", id="7")],
    ),
    (
        "the counsel cases",
        "hrc",
        {"상담 내용": "왜?", "원본 상담 답변": "법."},
        PLAIN,
        [row("왜?", "", "법.")],
    ),
    ("no answer", "hrc", {"질의": "왜?"}, PLAIN, [rejection("no-output")]),
]


@pytest.mark.parametrize(
    ("name", "record", "options", "expected"),
    [case[1:] for case in TABLE],
    ids=[f"{case[1]}: {case[0]}" for case in TABLE],
)
def test_a_record_becomes_its_rows(
    name: str, record: dict[str, Any], options: Options, expected: list[Any]
) -> None:
    """Every record of the table becomes exactly its drafts and rejections, and their units add up."""
    source = BY_NAME[name]
    assert source is not None
    read = msgspec.convert(record, source.record)
    items = list(source.drafts(read, options))
    results = [
        (item.reason, {"turn": item.turn, "units": item.units})
        if isinstance(item, Rejection)
        else item
        for item in items
    ]
    expected_results = [
        (item[0], {"turn": 0, "units": 1} | item[1]) if isinstance(item, tuple) else item
        for item in expected
    ]
    assert results == expected_results
    assert sum(item.units for item in items) == (source.units(read) if source.units else 1)


RECORDS = [
    (talk(("human", "?"), ("gpt", ".")), "dialogues"),
    (talk(), "dialogues"),
    (article(), "squad"),
    ({"qas": [qa("?", ("서울", 0))], "context": "서울"}, "squad"),
    ({"instruction": "?", "output": "."}, "alpaca"),
    ({"instruction": "?", "context": "", "response": ".", "category": "open_qa"}, "dolly"),
    ({"Q": "?", "A": ".", "label": "0"}, "question-answer"),
    ({"상담 내용": "?", "원본 상담 답변": "."}, "hrc"),
    ({"질의": "?", "상담례, 결정례 기반 답변": "."}, "hrc"),
    ({"prompt": "?", "completion": "."}, "prompt-completion"),
    (article(qa("KLUE-MRC?", is_impossible=True, guid="klue")), "squad"),
    ({"title": "no paragraphs", "paragraphs": []}, None),
    ({"instruction": "only"}, None),
]


@pytest.mark.parametrize(("record", "name"), RECORDS)
def test_a_source_is_known_by_its_records(record: dict[str, Any], name: str | None) -> None:
    """Under a name that says nothing the record tells the source; strangers are claimed by none."""
    candidates = [source for source in SOURCES if source.looks_like(record) and not source.by_name]
    assert next((source.name for source in candidates), None) == name


ALPACA = json.dumps([{"instruction": "?", "input": "", "output": "."}])
ARTICLE = json.dumps({"version": "1", "data": [article(qa("?", ("서울", 0)))]})
HEADS = {
    "kovicuna": json.dumps([TWO]),
    "kovicuna-alpaca": ALPACA,
    "koalpaca": ALPACA,
    "kullm": ALPACA,
    "korquad1": ARTICLE,
    "klue-mrc": ARTICLE,
    "korquad1-flat": json.dumps({"question": "?", "context": "", "answers": {"text": ["."]}}),
    "korquad2": json.dumps({"data": [{"title": "", "context": "", "raw_html": "", "qas": []}]}),
    "korquad2-questions": '{"title": "", "question": "?", "html_answer_text": "."}\n',
    "hrc": '{"질의": "?", "상담례, 결정례 기반 답변": "."}\n',
    "databricks-dolly-15k": '{"instruction": "?", "context": "", "response": ".", "category": "open_qa"}\n',
    "chatbot-data": "Q,A,label\n안녕,반가워요.,0\n",
}


def recognised_source(file: str, head: str, sources: Sequence[Source] = SOURCES) -> str | None:
    layout = layout_of(head.encode())
    assert layout is not None
    source = recognise(file, layout, sources)
    return source.name if source else None


@pytest.mark.parametrize(
    ("name", "pattern"),
    [(source.name, pattern) for source in SOURCES for pattern in source.patterns],
)
def test_a_source_is_known_by_each_of_its_names(name: str, pattern: str) -> None:
    """A file whose name matches a pattern is that source's, in a folder or an archive, filled or bare."""
    for part in ("", "_v1"):
        file = pattern.replace("[01]", "1").replace("*", part)
        assert recognised_source(file, HEADS[name]) == name
        assert recognised_source(f"raw/all.zip!deep/{file}", HEADS[name]) == name


def test_a_licence_goes_with_a_name() -> None:
    """A shape, which sets of any licence have, has no licence; a set that is known by its files' names has one."""
    assert all((source.licence == UNKNOWN) == (not source.patterns) for source in SOURCES)


def test_a_source_known_by_its_name_alone_needs_it() -> None:
    """KoVicuna's alpaca-style file is that set whatever its ending; under any other name it is Alpaca rows."""
    head = HEADS["kovicuna-alpaca"]
    for file in ("ko_alpaca_style_dataset.json", "ko_alpaca_style_dataset_v2.json.gz"):
        assert recognised_source(file, head) == "kovicuna-alpaca"
    assert recognised_source("data.json", head) == "alpaca"
    assert recognised_source("ko_alpaca_style_dataset.json", json.dumps([{"prompt": "?"}])) is None


def test_a_source_known_by_its_name_alone_goes_first() -> None:
    """It wins over a source that stands before it and has a pattern for the same name."""
    first = dataclasses.replace(
        SOURCES[0], looks_like=lambda record: True, patterns=("ko_*",), by_name=False
    )
    sources = (first, *SOURCES[1:])
    assert (
        recognised_source("ko_alpaca_style_dataset.json", HEADS["koalpaca"], sources)
        == "kovicuna-alpaca"
    )
    assert recognised_source("ko_alpaca_other.json", HEADS["koalpaca"], sources) == "kovicuna"


def test_korquad1_leaves_korquad2_pages() -> None:
    """A KorQuAD 2 page has `answer` where 1.0 has `answers`, and is no 1.0 record."""
    source = BY_NAME["korquad1"]
    assert source is not None
    page = {"title": "서울", "context": "<p>", "qas": [{"question": "?", "answer": {"text": ""}}]}
    assert not source.looks_like(page)
    assert not source.looks_like({"context": "<p>", "raw_html": "<p>", "qas": []})


ROLES = ("human", "user", "gpt", "bard", "system", "nobody")


@given(
    st.lists(st.tuples(st.sampled_from(ROLES), st.text(max_size=3)), max_size=8),
    st.sampled_from(("off", "count", "join", "drop")),
    st.integers(0, 2),
    st.booleans(),
)
def test_every_turn_is_accounted_for(
    turns: list[tuple[str, str]], mode: str, history: int, whole: bool
) -> None:
    """Whatever order speakers come in, used and rejected turns add up to the conversation's."""
    source = BY_NAME["kovicuna"]
    assert source is not None
    assert source.units is not None
    record = msgspec.convert(talk(*turns), source.record)
    options = Options(rules={"same-role": mode}, history=history, conversations=whole)
    items = list(source.drafts(record, options))
    assert items
    assert sum(item.units for item in items) == source.units(record) == max(len(turns), 1)


def test_reasons_are_explained() -> None:
    """Whatever a source may refuse or note has a sentence for the card."""
    for _, name, record, options, _ in TABLE:
        source = BY_NAME[name]
        assert source is not None
        for item in source.drafts(msgspec.convert(record, source.record), options):
            names = [item.reason] if isinstance(item, Rejection) else item.notes
            assert all(meaning(name) for name in names)


def test_user_modes_go_before_a_sources_and_the_rules_own() -> None:
    """A person's choice wins over the source's default, and that over the rule's."""
    modes = modes_of({"nfc": "off"}, {"nfc": "count", "too-long": "off"})
    assert (modes["nfc"], modes["too-long"], modes["bom"]) == ("off", "off", "fix")


@pytest.mark.parametrize(
    ("modes", "message"),
    [({"nfk": "off"}, "no rule 'nfk'; there are nfc"), ({"empty": "off"}, "it has drop")],
)
def test_a_wrong_mode_is_named(modes: dict[str, str], message: str) -> None:
    """A rule or mode that does not exist is an OptionError that names what does."""
    with pytest.raises(OptionError, match=message):
        modes_of(modes)
