"""The cleaner: each rule on texts it fires on and on texts it must leave, and its promises on any text."""

import unicodedata
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kodolly_adapters.convert.cleaning.clean import Cleaner
from kodolly_adapters.convert.cleaning.language import is_untranslated
from kodolly_adapters.convert.cleaning.rules import all_rules, modes_of
from kodolly_adapters.convert.options import Options
from kodolly_adapters.convert.schema import Draft, Rejection

OFF: dict[str, Any] = {rule.name: "off" for rule in all_rules().values() if "off" in rule.modes}


def clean(
    draft: Draft, options: Options | None = None, **modes: str
) -> tuple[Rejection | None, Counter[str]]:
    """A single row's rejection and the rules that applied; modes are written with _ for -."""
    by_rule = {name.replace("_", "-"): mode for name, mode in modes.items()}
    counts = Counter[str]()
    cleaner = Cleaner(modes_of(by_rule), options or Options())
    is_row, rejections = cleaner.clean(draft, counts)
    assert is_row is not bool(rejections)
    return next(iter(rejections), None), counts


FIXES = [
    ("nfc", unicodedata.normalize("NFD", "한글입니다"), "한글입니다"),
    ("newlines", "첫째\r\n둘째\r셋째", "첫째\n둘째\n셋째"),
    ("bom", "\ufeff안녕하세요", "안녕하세요"),
    (
        "entities",
        "가&nbsp;나 &lt;b&gt; &#54620; &amp;quot;따옴표&amp;quot;",
        '가 나 <b> 한 "따옴표"',
    ),
    ("zero-width", "한\u200b국\u00ad어\u2060 글\ufeff자\u200d", "한국어 글자"),
    ("outer-space", " \n안녕하세요\t", "안녕하세요"),
    ("leading-colon", ": 정답은 삼입니다", "정답은 삼입니다"),
]


@pytest.mark.parametrize(("rule", "text", "result"), FIXES, ids=[case[0] for case in FIXES])
def test_a_fix_fires_is_counted_and_can_be_switched(rule: str, text: str, result: str) -> None:
    """Each text rule fixes by default, leaves the text when it counts, and is silent when off."""
    alone: dict[str, Any] = {name: mode for name, mode in OFF.items() if name != rule}
    for mode, expected, hits in [("fix", result, 1), ("count", text, 1), ("off", text, 0)]:
        draft = Draft("질문", "", text)
        assert clean(draft, **alone | {rule: mode}) == (None, {rule: 1} if hits else {})
        assert draft.response == expected


UNCHANGED = [
    "코드 `a &lt; b`와 ```\n&amp;\n``` 사이",
    "https://example.org/?a=1&copy=2&lang=ko",
    "가족 👨\u200d👩\u200d👧 이모지와 ❤\ufe0f\u200d🔥",
    "나는 &없는이름; 과 A & B 회사",
    ":hover 와 :) 는 그대로",
    "전각\u3000공백과\u00a0빈칸\t탭",
]


@pytest.mark.parametrize("text", UNCHANGED)
def test_what_means_something_is_left(text: str) -> None:
    """Code, URLs, emoji sequences, smileys and wide spaces pass unchanged and uncounted."""
    draft = Draft("질문", "", text)
    assert clean(draft) == (None, {})
    assert draft.response == text


@pytest.mark.parametrize(
    "marker",
    ["입력 없음", "<입력 없음>", "입력이 없습니다.", '"<노인입력>"', "NoInput", "N/A", "`<노인입력>`",
     "noinput", "<노인입력>.", "<noinput", "<노인입력", "입력 필요 없음", "입력이 필요하지 않습니다.", "<닌입력>"],
)  # fmt: skip
def test_no_input_markers_become_no_input(marker: str) -> None:
    """A context that only says there is none becomes empty, and is counted."""
    draft = Draft("질문", marker, "대답입니다")
    assert clean(draft) == (None, {"no-input-marker": 1})
    assert draft.context == ""


@pytest.mark.parametrize(
    "context", ["펜이 없습니다.", "시\n\n입력 없음", "노인이 길을 걷고 있었습니다.", "없음"]
)
def test_contexts_are_not_taken_for_markers(context: str) -> None:
    """A context with words of its own stays."""
    draft = Draft("질문", context, "대답입니다")
    assert clean(draft) == (None, {})
    assert draft.context == context


@pytest.mark.parametrize(
    ("question", "answer"),
    [("", "답"), ("질문", ""), ("질문", " \r\n"), ("\u200b", "답"), (" ", "답")],
)
def test_empty_rows_are_rejected(question: str, answer: str) -> None:
    """A row that is empty once cleaned is rejected, with its units."""
    rejection, counts = clean(Draft(question, "", answer, id="x", turn=2, units=3))
    assert rejection is not None
    assert (rejection.reason, rejection.id, rejection.turn, rejection.units) == ("empty", "x", 2, 3)
    assert counts["empty"] == 1


def test_notes_of_the_source_are_counted() -> None:
    """What the source noted is counted with the row."""
    assert clean(Draft("질문", "", "대답", notes=("same-role",)))[1] == {"same-role": 1}


def test_lengths_are_counted_or_dropped() -> None:
    """too-short and too-long take their limits from the options and refuse only when told to."""
    limits = Options(min_chars=5, max_chars=8)
    assert clean(Draft("질문", "", "대답"), limits) == (None, {"too-short": 1})
    assert clean(Draft("질문", "문맥입니다", "대답입니다"), limits) == (None, {"too-long": 1})
    for rule, answer in [("too_short", "대답"), ("too_long", "아주 긴 대답입니다")]:
        rejection, _ = clean(Draft("질문", "", answer), limits, **{rule: "drop"})
        assert rejection is not None
        assert rejection.reason == rule.replace("_", "-")


FOREIGN = [
    ("여름에 대한 시를 쓰세요.", "", "The sun is high and the sea is warm, and we are happy."),
    (
        "고객에게 편지를 쓰세요.",
        "김 씨",
        "Dear Mr. Kim,\n\nI am writing to thank you for your help.",
    ),
    ("수도를 설명하세요.", "", "东京是日本的首都,也是世界上人口最多的城市之一,拥有悠久的历史。"),
    ("Describe the city.", "", "The city is on a river and has a lot of parks to visit."),
]
GOOD_ROWS = [
    ("이 문장을 영어로 번역하세요.", "나는 학생이다.", "I am a student and this is my school."),
    ("합을 구하는 함수를 쓰세요.", "", "def add(a, b):\n    return a + b  # the sum of a and b"),
    ("테이블을 모두 고르세요.", "", "SELECT * FROM users WHERE age > 20 AND city = 'Seoul';"),
    ("방정식을 푸세요.", "2x = 4", "x = 2"),
    ("네트워크 회사 다섯 개를 고르세요.", "", "Cisco, Juniper, Arista, Huawei, Nokia Networks"),
    ("저자가 누구인가요?", "", "The Lord of the Rings와 The Hobbit은 J. R. R. Tolkien이 썼습니다."),
    ("주소가 뭐예요?", "", "https://www.example.org/the/path/of/a/very/long/page"),
    (
        "문장을 고치세요.",
        "She go to the school and is happy.",
        "She goes to the school and is happy.",
    ),
    (
        "노래 제목은?",
        "앨범 'The House of the Rising Sun and Me'",
        "The House of the Rising Sun and Me",
    ),
    ("수도는 어디인가요?", "", "대한민국의 수도는 서울이며 인구는 약 구백사십만 명입니다."),
]


@pytest.mark.parametrize("row", FOREIGN)
def test_foreign_answers_are_untranslated(row: tuple[str, str, str]) -> None:
    """An answer in running foreign text that nothing asked for is untranslated."""
    assert is_untranslated(*row)
    rejection, counts = clean(Draft(*row), untranslated="drop")
    assert rejection is not None
    assert (rejection.reason, counts) == ("untranslated", {"untranslated": 1})


@pytest.mark.parametrize("row", GOOD_ROWS)
def test_answers_that_belong_are_not_untranslated(row: tuple[str, str, str]) -> None:
    """Translations, code, formulas, names, addresses, quotations and Korean are what was asked for."""
    assert not is_untranslated(*row)


SCRAPS = st.sampled_from(
    ["&amp;", "&lt;", "amp;", "&", "#38;", "&#96;", "`", "```", "\r", "\n", " ", "\u200b", "\u200d", "\ufeff",
     "\u00ad", "👩", "ᄒ", "ᅡ", "ᆫ", "한", ": ", ":", "&#13;", "&ZeroWidthSpace;", "&#xD800;", "N/A", "\ud800",
     "010-1234-5678", "a@b.kr", "the ", "é", "e\u0301"]
)  # fmt: skip
TEXT = st.one_of(
    st.text(st.characters(exclude_categories=[]), max_size=30),
    st.lists(SCRAPS, max_size=12).map("".join),
)


@given(TEXT, TEXT, TEXT, st.sampled_from(("off", "mask")))
def test_cleaning_ends_and_cleaning_again_changes_nothing(
    question: str, context: str, answer: str, personal: str
) -> None:
    """No text raises; what is kept is UTF-8, and is kept as it stands when cleaned again."""
    draft = Draft(question, context, answer)
    rejection, _ = clean(draft, personal_data=personal)
    if rejection is not None:
        assert rejection.reason in {"empty", "not-unicode", "entities"}
        return
    once = (draft.instruction, draft.context, draft.response)
    "".join(once).encode("utf-8")
    again, counts = clean(draft, personal_data=personal)
    assert again is None
    assert (draft.instruction, draft.context, draft.response) == once
    assert not set(counts) - {"untranslated", "too-short", "too-long"}


@pytest.mark.parametrize("field", ["instruction", "context", "response"])
def test_half_a_surrogate_pair_is_rejected(field: str) -> None:
    """A text no UTF-8 file can hold is rejected, not raised."""
    draft = Draft("질문", "문맥", "대답")
    setattr(draft, field, "글\ud83d")
    rejection, _ = clean(draft)
    assert rejection is not None
    assert rejection.reason == "not-unicode"


def test_all_rules_off_leaves_texts_alone() -> None:
    """With every rule off a row passes as it came."""
    texts = (" ᄒ\r\n", "\ufeffN/A", ": &lt;\u200b")
    draft = Draft(*texts)
    assert clean(draft, **OFF) == (None, {})
    assert (draft.instruction, draft.context, draft.response) == texts
