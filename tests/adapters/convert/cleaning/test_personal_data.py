"""Personal data: what is masked, and the numbers that only look like it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kodolly_adapters.convert.cleaning.personal_data import mask

PHONES = [
    "010-1234-5678", "010.1234.5678", "010 1234 5678", "01012345678", "011-234-5678", "02-123-4567", "02)1234-5678",
    "(031) 123-4567", "070-1234-5678", "+82-10-1234-5678", "+82 10 1234 5678", "+821012345678", "080-123-4567",
    "1588-1588", "1544-9999", "0505-123-4567",
]  # fmt: skip
NUMBERS = [
    "2023-01-15", "1592-1598", "1855-1899", "978-89-1234-567-8", "1,234,567", "192.168.010.123", "10.0.1234.5678",
    "v0.10.1234", "1234-5678-9012-3456", "0101010101", "01010101010", "3.141592653589793", "110-123-456789",
    "010-12-345", "2010-1234-5678", "010-1234-56789", "1588-12345", "A-010-1234-5678", "1234567890123",
    "821332-1234567", "820230-1234567", "8207012409185", "12:30-13:30", "@media", "a@b", "lodash@4.17.21",
]  # fmt: skip


@pytest.mark.parametrize("phone", PHONES)
def test_phone_numbers_are_masked(phone: str) -> None:
    """Mobile, area, Internet and service numbers are masked, particles and punctuation kept."""
    assert mask(f"전화:{phone}로, 또는 {phone}.") == "전화:<전화번호>로, 또는 <전화번호>."


@pytest.mark.parametrize("number", NUMBERS)
def test_other_numbers_are_left(number: str) -> None:
    """Dates, spans of years, prices, versions, addresses and account numbers stay."""
    assert mask(f"값은 {number} 이다.") == f"값은 {number} 이다."


@pytest.mark.parametrize("number", ["900101-1234568", "900101 - 2******", "040229-3123456"])
def test_resident_numbers_are_masked_by_their_date(number: str) -> None:
    """A hyphened number whose first half is a day is one, whatever its last digit."""
    assert mask(f"주민번호 {number}입니다") == "주민번호 <주민등록번호>입니다"


def test_an_unhyphened_resident_number_needs_its_check_digit() -> None:
    """Of the ten numbers that differ in the last digit alone, one is masked."""
    masked = [digit for digit in range(10) if "<" in mask(f"번호 900101123456{digit} 끝")]
    weighted = zip((2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5), "900101123456", strict=True)
    total = sum(weight * int(digit) for weight, digit in weighted)
    assert masked == [(11 - total % 11) % 10]


@pytest.mark.parametrize(
    "address", ["hong.gildong@example.com", "a1@mail.example.co.kr", "x+y@ex-ample.org"]
)
def test_addresses_are_masked(address: str) -> None:
    """E-mail addresses are masked, the Korean particle behind stays."""
    assert mask(f"{address}으로 보내세요") == "<이메일>으로 보내세요"


def test_a_span_of_years_is_a_number_after_a_telephone() -> None:
    """1544-1600 is masked where the words before it name a telephone."""
    assert mask("고객센터 1544-1600") == "고객센터 <전화번호>"
    assert mask("조선 1544-1600") == "조선 1544-1600"


@given(st.text("0123456789-. @a+()한", max_size=40))
def test_masking_twice_is_masking_once(text: str) -> None:
    """A mask is nothing that could be masked."""
    once = mask(text)
    assert mask(once) == once
