"""Rule `personal-data`: Korean phone numbers, resident registration numbers and e-mail addresses.

A pattern that also fits dates, prices, versions, ISBNs or account numbers masks too much, so each number needs
a Korean prefix and its usual grouping, and may touch no other digit, dot or hyphen.
"""

from __future__ import annotations

import re

PHONE, RESIDENT, EMAIL = "<전화번호>", "<주민등록번호>", "<이메일>"

# A number must stand alone: what touches it must not make it part of a longer number, a version, a code or
# an IP address.
_START = r"(?<![0-9A-Za-z_-])(?<![0-9][.,/:])"
_END = r"(?![0-9A-Za-z_])(?![-.:][0-9])"

_MOBILE = r"1[016789]"
_AREA = r"(?:70|50[2-8]?|80|2|3[1-3]|4[1-4]|5[1-5]|6[1-4])"
_NATIONAL = r"(?:\+82[-. ]?(?:\(0\)|0)?|\(?0)"  # the country code +82 replaces the first 0
_PHONE = re.compile(
    _START
    + "(?:"
    + rf"{_NATIONAL}{_MOBILE}(?:\)[-. ]?|[-. ])[0-9]{{3,4}}[-. ][0-9]{{4}}"
    + rf"|{_NATIONAL}{_AREA}(?:\)[-. ]?|[-.])[1-9][0-9]{{2,3}}[-.][0-9]{{4}}"
    + r"|(?![01]{11})(?:\+82[-. ]?0?|0)10[1-9][0-9]{7}"  # without separators; a number of 0s and 1s alone is binary
    + ")"
    + _END
)
_OFFICE = re.compile(
    _START
    + r"(1(?:5(?:22|33|44|55|66|77|88|99)|6(?:00|44|61|66|70|88)|8(?:00|11|33|55|77|99)))-([0-9]{4})"
    + _END
)
_PHONE_WORD = re.compile("전화|☎|☏|📞|콜센터|고객센터|상담|문의|번호|신고|[Tt][Ee][Ll]")
_LAST_YEAR = 2099
_RESIDENT = re.compile(
    _START
    + r"([0-9]{2})(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])( ?[-–] ?)?([1-8][0-9]{6}|[1-4]\*{6})"
    + _END
)
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}[A-Za-z0-9])?\.){1,4}[A-Za-z]{2,24}(?![A-Za-z0-9])"
)
_FOUR_DIGITS = re.compile("[0-9]{4}")
_WEIGHTS = (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)
_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def _has_check_digit(digits: str) -> bool:
    """Whether the last digit is the right check digit for the twelve before it."""
    total = sum(weight * int(digit) for weight, digit in zip(_WEIGHTS, digits[:12], strict=True))
    return (11 - total % 11) % 10 == int(digits[12])


def _mask_resident(match: re.Match[str]) -> str:
    year, month, day, hyphen, rest = match.groups()
    is_valid = not rest.endswith("*") and _has_check_digit(year + month + day + rest)
    is_number = int(day) <= _DAYS[int(month) - 1] and (hyphen or is_valid)
    return RESIDENT if is_number else match[0]


def _mask_office(match: re.Match[str]) -> str:
    """PHONE for 1588-2345; unchanged where it may be a span of years, such as 1592-1598.

    With a word for telephoning up to 20 characters before it, a span of years is a phone number too.
    """
    start, end, at = int(match[1]), int(match[2]), match.start()
    may_be_years = start < end <= _LAST_YEAR
    is_phone = not may_be_years or _PHONE_WORD.search(match.string, max(0, at - 20), at)
    return PHONE if is_phone else match[0]


def mask(text: str) -> str:
    """The text with each such number or address replaced by PHONE, RESIDENT or EMAIL."""
    if "@" in text:
        text = _EMAIL.sub(EMAIL, text)
    if not _FOUR_DIGITS.search(text):  # all such numbers contain them; this search is fast
        return text
    text = _RESIDENT.sub(_mask_resident, text)
    return _OFFICE.sub(_mask_office, _PHONE.sub(PHONE, text))
