"""Word lists for the rows made by rule, and the particles that follow a word."""

# ruff: noqa: SIM905 - lists of words are read, and written, as words
from __future__ import annotations

import random

# Names are made of two syllables, which gives thousands, so that the model learns none by heart and
# has to find the answer to a question about a person in the text.
FIRST = (
    "가 강 건 경 규 기 나 다 단 도 동 라 로 루 리 마 명 문 미 민 바 병 보 상 새 서 석 선 성 세 소 "
    "솔 수 승 시 아 안 연 영 예 온 용 우 원 유 윤 은 이 인 재 정 제 종 주 준 지 진 찬 창 채 철 초 "
    "태 하 한 해 현 형 혜 호 홍 효 훈 희"
).split()
SECOND = (
    "건 경 교 구 규 균 기 나 남 내 노 늘 담 달 도 람 란 린 림 명 미 민 별 복 빈 빛 서 석 선 섭 솔 "
    "수 숙 순 슬 승 식 실 아 안 연 영 옥 온 용 우 욱 운 웅 원 유 윤 율 은 의 이 인 임 재 정 주 준 "
    "지 진 찬 창 철 춘 태 하 한 해 혁 현 형 혜 호 환 후 훈 휘 희"
).split()
FAMILY_NAMES = "김 이 박 최 정 강 조 윤 장 임 한 오 서 신 권 황 안 송 류 홍".split()
ROLES = (
    "동생 언니 누나 형 오빠 아버지 어머니 할머니 할아버지 삼촌 이모 고모 사촌 친구 이웃 선배 후배 "
    "반장 짝꿍 조카"
).split()
HELD_OUT_NAMES = "현정 규리 태민 은우 세아 진호 윤서 강민".split()  # in no training file

PLACES = (
    "서울 부산 대구 인천 광주 대전 울산 강릉 전주 춘천 제주도 속초 여수 포항 목포 군산 안동 수원 통영 "
    "거제 남해 양양 파주 청주 충주 원주 공주 순천 진주 김해 "
    "공원 시장 도서관 바닷가 산 학교 병원 극장 동물원 수영장 미술관 놀이공원 체육관 서점 은행 우체국 "
    "강가 식물원 온천 호수 운동장 목장 섬 시골 절 약수터 캠핑장 빵집 문구점 경기장 공항 기차역 항구"
).split()
CITIES = 30  # the first 30 of PLACES are cities
DAYS = "월요일 화요일 수요일 목요일 금요일 토요일 일요일 주말 아침 저녁 점심 방학 휴일 생일 어린이날".split()
WEEKDAYS = 7  # the first 7 of DAYS
FOODS = (
    "비빔밥 김밥 라면 냉면 떡볶이 불고기 만두 국수 빵 수박 사과 포도 딸기 귤 배 복숭아 우유 케이크 감자 "
    "고구마 옥수수 토마토 오이 당근 참외 자두 살구 체리 레몬 바나나 치즈 과자 사탕 초콜릿 아이스크림 "
    "갈비 삼겹살 칼국수 떡국 미역국 된장찌개 김치찌개 순두부 볶음밥 카레 피자 햄버거 샌드위치 샐러드 "
    "호두 땅콩 식혜 녹차 커피 홍차 주스 요구르트 두부 달걀 생선 새우 오징어 조개"
).split()
THINGS = (
    "우산 가방 모자 신발 자전거 연필 공책 책 시계 장갑 안경 컵 의자 필통 목도리 지갑 양말 셔츠 바지 치마 "
    "외투 운동화 구두 책상 침대 이불 베개 거울 빗 수건 칫솔 접시 숟가락 냄비 주전자 화분 꽃병 액자 인형 "
    "공 기타 피아노 카메라 전화기 라디오 선풍기 손전등 가위 풀 자 지우개 붓 물감 상자 바구니 열쇠 반지 목걸이 "
    "팔찌 커튼 깃발 풍선 연 썰매 텐트 배낭 물통"
).split()
COLOURS = (
    "빨간색 파란색 노란색 초록색 하얀색 검은색 보라색 분홍색 주황색 회색 갈색 남색 하늘색 연두색 은색 금색"
).split()
ANIMALS = (
    "강아지 고양이 토끼 거북이 햄스터 앵무새 금붕어 닭 염소 오리 거위 양 말 소 돼지 다람쥐 고슴도치 도마뱀 카나리아 "
    "달팽이 열대어"
).split()
JOBS = (
    "의사 선생님 요리사 소방관 경찰관 간호사 화가 농부 가수 기자 운전사 변호사 약사 배우 작가 목수 어부 "
    "과학자 사진사 미용사 은행원 비행사 건축가 통역사 사서 제빵사 수의사 정원사 우체부 판사"
).split()
HOBBIES = (
    "낚시 등산 독서 수영 요리 그림 축구 농구 피아노 사진 여행 바둑 자전거 노래 배구 야구 탁구 테니스 배드민턴 "
    "춤 서예 뜨개질 글쓰기 달리기 산책 캠핑 스키 체스 종이접기 수집 꽃꽂이 원예 영화감상"
).split()
EVENTS = (
    "회의 음악회 운동회 전시회 결혼식 생일잔치 시험 강연 축제 모임 발표회 졸업식 입학식 공연 경기 면접 송별회 "
    "벼룩시장 체험행사 토론회 설명회 독서회 봉사활동 불꽃놀이 연극"
).split()
HALLS = (
    "시청 강당 공원 체육관 회의실 도서관 운동장 광장 학교 식당 미술관 교실 극장 음악당 마을회관 구민회관 호텔 "
    "박물관 옥상 정원"
).split()
COUNTS = "한 두 세 네 다섯 여섯 일곱 여덟 아홉 열 열한 열두 열다섯 스무".split()
PRICES = (
    "오백 육백 팔백 천 천오백 이천 이천오백 삼천 사천 오천 육천 칠천 팔천 구천 만 만이천 만오천 이만 삼만"
).split()
SHOPS = (
    "도서관 박물관 시장 은행 우체국 서점 수영장 식당 빵집 꽃집 약국 미술관 병원 카페 문구점 동물원 식물원 "
    "체육관 백화점 미용실 세탁소 극장 매표소 관공서"
).split()
SPOTS = (
    "책상 위,의자 밑,서랍 안,침대 옆,문 앞,창가,가방 안,상자 안,부엌,거실,마당,현관,차 안,옷장 안,책장 위,선반 위,화분 옆"
).split(",")


def person(draw: random.Random) -> str:
    """A made-up given name, sometimes with a family name, or a role; none of HELD_OUT_NAMES."""
    if draw.random() < 0.12:
        return draw.choice(ROLES)
    while True:
        name = draw.choice(FIRST) + draw.choice(SECOND)
        if name not in HELD_OUT_NAMES and name[0] != name[1]:
            return draw.choice(FAMILY_NAMES) + name if draw.random() < 0.08 else name


def people(draw: random.Random, number: int) -> list[str]:
    """`number` different made-up people; no name is part of another."""
    names: list[str] = []
    while len(names) < number:
        name = person(draw)
        if all(name not in other and other not in name for other in names):
            names.append(name)
    return names


def josa(word: str, after_consonant: str, after_vowel: str) -> str:
    """`word` with the particle that fits its last syllable: josa("책", "을", "를") is "책을"."""
    return word + (after_consonant if ends_in_consonant(word) else after_vowel)


def ends_in_consonant(word: str) -> bool:
    """Is the last letter of `word` a Hangul syllable with a final consonant?"""
    syllable = (
        ord(word[-1]) - 0xAC00
    )  # its index among Unicode's 11,172 syllables, 28 for each vowel
    return 0 <= syllable < 11172 and syllable % 28 != 0


def topic(word: str) -> str:
    """`word` with 은 or 는."""
    return josa(word, "은", "는")


def object_of(word: str) -> str:
    """`word` with 을 or 를."""
    return josa(word, "을", "를")
