"""Makes other ways to ask the same question, by rule: endings, particles, openings, spaces, punctuation.

People ask the same thing in many ways. A small model takes each of them for another question, unless
it has seen many of them in training.
"""

# ruff: noqa: SIM905 - lists of words are read, and written, as words
from __future__ import annotations

import random
import re
from functools import cache

from kodolly_ko.words import ends_in_consonant, josa

NOUNS = (
    "누구 어디 언제 얼마 색 색깔 곳 동물 음식 계절 요일 날 며칠 몇 시 시간 분 초 달 개 도 포트 번호 사람 "
    "기계 나라 일 뜻 말 이름 직업 왕 산 섬 강 꽃 명령 명령어 방법"
).split()
VERBS = (  # for frequent verbs: the formal question, the plain one, the stem before 니 and 나, that before 니까
    "하나요 해 하 합", "되나요 돼 되 됩", "오나요 와 오 옵", "보나요 봐 보 봅", "먹나요 먹어 먹 먹습",
    "쓰나요 써 쓰 씁", "내나요 내 내 냅", "만드나요 만들어 만드 만듭", "끓나요 끓어 끓 끓습", "도나요 돌아 도 돕",
    "키우나요 키워 키우 키웁", "열리나요 열려 열리 열립", "닫나요 닫아 닫 닫습", "쉬나요 쉬어 쉬 쉽", "뜨나요 떠 뜨 뜹",
    "늘리나요 늘려 늘리 늘립", "바꾸나요 바꿔 바꾸 바꿉", "시키나요 시켜 시키 시킵", "띄우나요 띄워 띄우 띄웁",
)  # fmt: skip
OPENINGS = (
    "혹시 ", "저기, ", "저기요, ", "코돌리야, ", "코돌리야 ", "코돌리, ", "코돌리! ", "그런데 ", "근데 ", "음, ",
    "있잖아, ", "궁금한 게 있어. ", "질문이 있어요. ", "하나만 물어볼게. ", "그럼 ", "그러면 ", "잠깐, ", "자, ",
)  # fmt: skip
STATEMENT_OPENINGS = ("코돌리야, ", "코돌리야 ", "코돌리, ", "저기, ", "음, ", "아, ")
QUESTION_WORD = re.compile(
    r" (?=뭐|뭔|무엇|어디|어딘|언제|누구|누가|얼마|몇|무슨|어떤|어떻게|왜|알려|말해|설명|가르쳐)"
)
FIXED_WORDS = frozenset("너는 나는 저는 너가 내가 제가 네가 혹시 저기 우리는 이 그는".split())
NOT_POSSESSIVE = {"회의", "강의", "논의", "의의", "합의"}
MARKS = re.compile(r"[\s.,!?~…'\"·]+")


def normalise(text: str) -> str:
    """`text` in lower case without spaces and punctuation, to compare two questions."""
    return MARKS.sub("", text).lower()


def normalise_core(text: str) -> str:
    """`text` normalised, without an opening that `vary` can put before it."""
    for opening in (*OPENINGS, *STATEMENT_OPENINGS):
        text = text.removeprefix(opening)
    return normalise(text)


def vary(draw: random.Random, question: str) -> str:
    """Another way to ask `question`, or `question` itself."""
    text = question
    if draw.random() < 0.5:
        text = _end(draw, text)
    if draw.random() < 0.4:
        text = _particles(draw, text)
    if draw.random() < 0.2:
        is_question = text.endswith(("?", "줘", "주세요", "주세요."))
        text = draw.choice(OPENINGS if is_question else STATEMENT_OPENINGS) + text
    if draw.random() < 0.3:
        text = _marks(draw, text)
    return text


@cache
def _families() -> dict[str, tuple[str, ...]]:
    """Each ending with its family: the endings that mean the same. If two families have it, the first one."""
    families: list[tuple[str, ...]] = [
        ("무엇인가요?", "뭐야?", "뭐예요?", "뭔가요?", "뭐지?", "뭐니?", "무엇입니까?", "뭐죠?", "뭘까?", "뭔지 알려 줘"),
        ("란 무엇인가요?", "란 뭐야?", "가 뭐야?", "가 뭔가요?", "는 뭐예요?", "가 뭐지?", "가 뭔지 알려 줘"),
        ("어때?", "어때요?", "어떤가요?", "어떠니?", "어떻습니까?", "어떨까?", "어떨까요?"),
        ("없나요?", "없어?", "없어요?", "없니?", "없습니까?"),
        ("알려 줘", "알려 주세요", "말해 줘", "말해 주세요", "가르쳐 줘", "가르쳐 주세요", "알려줘", "알려 줄래?",
         "알려 주실래요?", "알려 주시겠어요?", "좀 알려 줘", "알려 주십시오", "알고 싶어", "알고 싶어요"),
        (" 줘", " 주세요", " 줄래?", " 주실래요?", " 주시겠어요?", "줘", " 주십시오", " 줄 수 있어?", " 주세요."),
        ("하고 싶어", "하고 싶어요", "하고 싶은데", "하고 싶습니다", "하려면?", "하려고 해", "하려고 합니다"),
        ("려면?", "려면 어떻게 해?", "려면 어떻게 하나요?", "려면 어떻게 해야 해?", "려면 어떻게 해야 하나요?",
         "려면 뭘 해야 해?", "려면요?", "려면 무엇을 해야 하나요?"),
        ("하는 방법을 알려 줘", "하는 법 알려 줘", "하는 방법은?", "하려면 어떻게 해?", "하는 법이 뭐야?"),
    ]  # fmt: skip
    for noun in NOUNS:
        ends = (
            josa(noun, "이야?", "야?"),
            josa(noun, "이에요?", "예요?"),
            josa(noun, "이지?", "지?"),
        )
        more = (
            josa(noun, "이니?", "니?"),
            noun + "인가요?",
            noun + "입니까?",
            josa(noun, "이죠?", "죠?"),
        )
        families.append((*ends, *more))
    for verb in VERBS:
        formal, plain, stem, polite = verb.rsplit(" ", 3)
        forms = (
            formal + "?",
            plain + "?",
            plain + "요?",
            stem + "니?",
            stem + "나?",
            polite + "니까?",
        )
        families.append((*forms, stem + "지?", stem + "죠?"))
    return {ending: family for family in reversed(families) for ending in family}


def _end(draw: random.Random, text: str) -> str:
    """`text` with its longest known ending replaced by another one of the same family."""
    past = re.search(r"([가-힣])(나요|어|어요|니|습니까|지|을까요)\?$", text)
    if past and (ord(past[1]) - 0xAC00) % 28 == 20:  # a syllable that ends in ㅆ: 갔나요, 있어
        return (
            text[: past.start(2)] + draw.choice(["나요", "어", "어요", "니", "습니까", "지"]) + "?"
        )
    families = _families()
    for start in range(len(text)):
        if family := families.get(text[start:]):
            return text[:start] + draw.choice(family)
    return text


def _particles(draw: random.Random, text: str) -> str:
    """`text` with the particle before the question word (은, 는, 가) changed or dropped, and some 을, 를, 의 dropped."""
    place = QUESTION_WORD.search(text)
    if place and draw.random() < 0.7:
        words = text[: place.start()].split(" ")
        words[-1] = _topic(draw, words[-1])
        text = " ".join(words) + text[place.start() :]
    words = text.split(" ")
    return (
        " ".join(_bare(word) if draw.random() < 0.4 else word for word in words[:-1])
        + " " * (len(words) > 1)
        + words[-1]
    )


def _topic(draw: random.Random, word: str) -> str:
    """`word` with its last 은 or 는 changed to 이 or 가 (or 가 to 은 or 는), or without it."""
    for particle, after_consonant in (("은", True), ("는", False), ("이", True), ("가", False)):
        stem = word.removesuffix(particle)
        if stem != word and len(stem) > 1 and word not in FIXED_WORDS:
            if ends_in_consonant(stem) == after_consonant and particle in "은는":
                return draw.choice([stem, josa(stem, "이", "가")])
            if ends_in_consonant(stem) == after_consonant and particle == "가":
                return draw.choice([stem, josa(stem, "은", "는")])
    return word


def _bare(word: str) -> str:
    """`word` without a last particle 을, 를 or 의."""
    stem = word[:-1]
    if len(stem) > 1 and (word[-1] == "을") == ends_in_consonant(stem) and word[-1] in "을를":
        return stem
    if len(stem) > 1 and word[-1] == "의" and word not in NOT_POSSESSIVE:
        return stem
    return word


def _marks(draw: random.Random, text: str) -> str:
    """`text` with its last punctuation mark dropped or replaced, or with one space dropped."""
    kind = draw.random()
    if kind < 0.5:
        return text.rstrip("?.!")
    if kind < 0.7:
        return text + "." if text[-1] not in "?.!" else text
    if kind < 0.8:
        return text.rstrip("?.!") + draw.choice(["~", "..", "!" if text[-1] != "?" else "??"])
    spaces = [
        place for place, letter in enumerate(text) if letter == " " and text[place - 1] not in ",.!"
    ]
    if not spaces:
        return text
    space = draw.choice(spaces)
    return text[:space] + text[space + 1 :]
