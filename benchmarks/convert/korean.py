"""Made-up Korean prose: grammatical sentences of words written here, drawn from a pool.

Nothing of a real data set is in it. A pool of distinct sentences is made once from templates; texts are
sequences of them, so that a corpus of gigabytes costs minutes and two texts share hardly a sentence.
"""

from __future__ import annotations

import bisect
from random import Random


def _words(text: str) -> list[str]:
    return text.split()


NOUNS = _words(
    "강물 거리 건물 겨울 경제 계획 고장 골목 공원 공장 과학 관객 광장 교실 교육 구름 국가 궁궐 규칙 그림 "
    "극장 기록 기술 기억 기차 길목 나라 나무 날씨 남쪽 노동 노래 논문 농부 눈물 다리 단어 달력 대학 도서관 "
    "도시 도자기 돌담 동네 동물 두부 들판 등대 마당 마을 마음 만화 말씨 매체 모임 목소리 무대 무역 문법 문장 "
    "문화 물가 미래 민요 바다 바람 박물관 발명 밥상 방법 방송 배경 백성 번역 법률 벼농사 변화 병원 보고서 봄비 "
    "부두 북쪽 분수 비밀 빙하 사건 사람 사전 산길 산업 상인 새벽 생물 서점 선거 선수 설명 섬마을 성벽 세계 "
    "소금 소설 속담 손님 수도 수업 수학 숙제 순서 시간 시장 식물 신문 실험 씨앗 아침 안개 약속 언덕 언어 여름 "
    "여행 역사 연구 연극 열차 염색 예산 예술 온도 왕조 외교 요리 우물 우주 운하 원인 위성 유물 음악 의견 의회 "
    "이야기 이웃 인구 인쇄 일기 임금 자료 자연 작가 잔치 장마 재료 저녁 전쟁 전통 절벽 정원 정책 제도 조사 종이 "
    "주민 주소 주장 지도 지식 지진 질문 집안 차례 찻잔 책상 천문대 철도 청년 체육 초원 축제 출판 친구 탑돌 태양 "
    "토론 통계 투표 특징 판소리 편지 평야 포구 표준 풍경 하늘 학교 학문 한옥 항구 해안 행정 향기 현상 호수 화가 "
    "화산 환경 활자 회의 효과 흙길 희망"
)
MODIFIERS = _words(
    "가까운 가벼운 값비싼 거대한 고요한 곧은 귀중한 그러한 깊은 낡은 낯선 너른 높은 느린 다양한 단단한 대표적인 "
    "독특한 두터운 따뜻한 뜻깊은 맑은 먼 밝은 복잡한 분명한 빠른 새로운 서늘한 섬세한 소박한 수많은 순수한 알려진 "
    "어려운 엄격한 오래된 온전한 유명한 자세한 작은 전형적인 조용한 주요한 중요한 짧은 차분한 최초의 커다란 "
    "특별한 평범한 풍부한 필요한 한결같은 활발한 흔한 흥미로운"
)
ADVERBS = _words(
    "가끔 거의 결국 곧바로 그대로 꾸준히 널리 다시 대체로 드물게 때때로 마침내 매우 먼저 몹시 반드시 비로소 비교적 "
    "서서히 스스로 아직 어느새 오늘날 오래 오히려 온통 완전히 우선 이따금 이미 일찍 자연스럽게 자주 점차 제법 주로 "
    "차츰 처음으로 특히 틀림없이 해마다 훨씬"
)
VERBS = _words(
    "가꾸 가르치 간직하 갖추 건네 고치 관찰하 그리 기다리 기록하 나누 넓히 높이 다루 다스리 담 돌보 되살리 드러내 "
    "만들 맡기 모으 묘사하 밝히 배우 보살피 보여주 보존하 분석하 비교하 빌리 살피 설계하 설명하 세우 숨기 시작하 알리 "
    "연구하 옮기 운영하 이끌 익히 잇 재배하 전하 정리하 조사하 준비하 지키 찾 채우 측정하 펼치 평가하 풀이하 "
    "확인하 후원하"
)
LINKERS = (
    "그러나",
    "그래서",
    "또한",
    "한편",
    "따라서",
    "예를 들어",
    "다만",
    "이후",
    "이와 함께",
    "반면",
)
ENGLISH = (
    "The result depends on the order of the steps and on the data that was given first.",
    "Please check the settings again before you start the next round of the test.",
    "It was built in the early years of the century and repaired several times since.",
    "There are three parts: the input, the rule that changes it, and the output.",
    "A short answer is enough here, but the reasons should be written down as well.",
)
CODE = (
    '```python\ndef total(items):\n    return sum(item["price"] for item in items)\n```',
    "```html\n&lt;div class=&quot;row&quot;&gt;\n\t&lt;p&gt;본문&lt;/p&gt;\n&lt;/div&gt;\n```",
    "```sql\nSELECT name, count(*) FROM visits WHERE day > '2023-01-01' GROUP BY name;\n```",
)
_SYLLABLES = (
    "가강고광구규기김나남노단달도동라로류마명모문미민박반배백보부빈사산상서석선성세소송수"
    "순승시신아안연영예오온용우원유윤은의이인일자장재전정제조주준중지진찬창천철청초춘충태평하한해향현형호홍화환효희"
)
_ENDINGS = {
    "study": ("한다.", "했다.", "하였다.", "하고 있다.", "할 수 있다."),
    "polite": ("합니다.", "했습니다.", "할 수 있습니다.", "하는 것이 좋습니다.", "해 주세요."),
}


def has_final(word: str) -> bool:
    """Does the last syllable end in a consonant, as the particles' choice asks?"""
    return (ord(word[-1]) - 0xAC00) % 28 != 0


def particle(word: str, pair: str) -> str:
    """`word` with the fitting one of a pair such as `은는`."""
    return word + pair[0 if has_final(word) else 1]


class Korean:
    """Sentences, titles and questions; everything follows from `random`."""

    def __init__(self, random: Random, size: int = 40_000, style: str = "polite") -> None:
        self.random = random
        self._style = _ENDINGS[style]
        self.sentences = sorted(
            {self._make_sentence() for _ in range(size)}, key=lambda text: (len(text), text)
        )
        self._lengths = [len(text) for text in self.sentences]
        self._mean = sum(self._lengths) / len(self._lengths) + 1

    def noun(self) -> str:
        """A noun, a compound of two, or a made-up name."""
        random = self.random
        kind = random.random()
        if kind < 0.5:
            return random.choice(NOUNS)
        if kind < 0.8:
            return random.choice(NOUNS) + random.choice(NOUNS)
        return self.name()

    def name(self) -> str:
        """A made-up proper name of two to four syllables."""
        return "".join(self.random.choices(_SYLLABLES, k=self.random.randint(2, 4)))

    def title(self) -> str:
        """The title of an article."""
        random = self.random
        if random.random() < 0.3:
            return f"{self.name()} ({random.choice(NOUNS)})"
        return f"{self.name()} {random.choice(NOUNS)}" if random.random() < 0.5 else self.name()

    def date(self) -> str:
        """A day, as Korean prose writes it."""
        random = self.random
        return f"{random.randint(1890, 2022)}년 {random.randint(1, 12)}월 {random.randint(1, 28)}일"

    def sentence(self, length: int | None = None) -> str:
        """Any sentence, or one of about `length` characters (no shorter than the shortest)."""
        if length is None:
            return self.random.choice(self.sentences)
        low = bisect.bisect_left(self._lengths, length * 0.85)
        high = max(bisect.bisect_right(self._lengths, length * 1.15), low + 1)
        return self.sentences[min(self.random.randrange(low, high), len(self.sentences) - 1)]

    def run(self, length: int) -> list[str]:
        """Sentences of about `length` characters together."""
        count = round(length / self._mean)
        if count <= 1:
            return [self.sentence(length)]
        return self.random.choices(self.sentences, k=count)

    def phrase(self, length: int) -> str:
        """Words of about `length` characters, without an ending."""
        words = [self.noun()]
        while sum(map(len, words)) + len(words) < length - 1:
            words.append(self.noun())
        return " ".join(words)[: max(length, 2)].strip()

    def question(self, length: int, about: str | None = None) -> str:
        """A question of about `length` characters."""
        random = self.random
        ending = random.choice(_QUESTIONS)
        rest = length - len(ending) - (len(about) + 2 if about else 0)
        middle = f"{particle(self.phrase(max(rest - 2, 2)), '을를')} " if rest > 4 else ""
        start = f"{about}의 " if about else ""
        return f"{start}{middle}{ending}"

    def _make_sentence(self) -> str:
        random = self.random
        words = [random.choice(LINKERS) + ","] if random.random() < 0.15 else []
        if random.random() < 0.12:
            words.append(self.date() + "에")
        for pair in random.choice((("은는", "을를"), ("이가", "을를"), ("은는", "와과", "을를"))):
            if random.random() < 0.45:
                words.append(random.choice(MODIFIERS))
            # 와/과 are the other way round: 과 follows a consonant.
            words.append(particle(self.noun(), "과와" if pair == "와과" else pair))
        if random.random() < 0.5:
            words.append(random.choice(ADVERBS))
        if random.random() < 0.35:
            words.append(random.choice(VERBS) + "고")
        if random.random() < 0.2:
            words.append(f"{random.randint(2, 9_000):,}번")
        # Every ending takes the verb as a noun, which is always right: 기록 + 을 + 한다.
        words.append(particle(random.choice(NOUNS), "을를"))
        words.append(random.choice(self._style))
        return " ".join(words)


_QUESTIONS = (
    "무엇인가요?", "설명해 주세요.", "언제인가?", "누구입니까?", "알려 주세요", "어디에 있나요?", "요약하세요.",
    "몇 번이야?", "작성해 주세요.", "나열하십시오.", "어떻게 하나요?", "왜 그런가?", "비교해 보세요.",
)  # fmt: skip
