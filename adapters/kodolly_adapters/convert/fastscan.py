"""Plain records to rows in one compiled pass over their bytes: no string of Python's is made.

A record that shows anything unusual (an escape beyond the common ones, a character some rule looks at, another key) is
left to the general way, which says what becomes of it; the two must agree to the byte, which tests compare.
Compiled by numba at first use and kept in its cache, which notices changes of this very file alone: all that is compiled
is here.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Table = NDArray[np.int32]

# What a character is to the scanner.
PLAIN, SPACE, HANGUL, TROUBLE, QUOTE, ESCAPE, ENTITY = range(7)
# Columns of the rows' table. START and END are the line's place in `lines`, ORIGIN and ORIGIN_END that in `origins`,
# FIRST to LAST_END where the first and last text stand in the data, quotes too. A row that is not PLAIN_ROW has only those.
ROW_COLUMNS = 14
START, END, ORIGIN, ORIGIN_END, ASKED, CONTEXT, ANSWER, ASKED_END, CONTEXT_END = range(9)
PLAIN_ROW, FIRST, FIRST_END, LAST, LAST_END = range(9, ROW_COLUMNS)
# Columns of the records' table: whether it was taken, its rows, the place of its bytes, that of its id, rows with CRLF.
RECORD_COLUMNS = 7
PLAINLY, ROWS, BEGIN, STOP, ID, ID_END, CRLF = range(RECORD_COLUMNS)
# Slots of `said`, what _text tells of the text it copied last.
_SLOTS = 5
_CHARS, _HANGULS, _LETTERS, _CRLF, _FIRST = range(_SLOTS)

_ID, _CONVERSATIONS, _FROM, _VALUE = b"id", b"conversations", b"from", b"value"
_HUMAN, _GPT = b"human", b"gpt"
_INSTRUCTION, _INPUT, _OUTPUT = b"instruction", b"input", b"output"
_OPEN = b'{"instruction":"'
_MIDDLE = b'","context":"'
_RESPONSE = b'","response":"'
_CLOSE = b'","category":"open_qa"}\n'
_TURN = b'","turn":'
_NEWLINE = b"\\n"


@njit(cache=True)
def _space(data: Bytes, at: int) -> int:
    """The place of the next byte that is no white space of JSON."""
    while at < len(data) and data[at] <= 32 and data[at] in (32, 10, 13, 9):
        at += 1
    return at


@njit(cache=True)
def _sign(data: Bytes, at: int, sign: int) -> int:
    """The place after `sign`, white space around it left out; -1 where something else stands."""
    at = _space(data, at)
    return _space(data, at + 1) if at < len(data) and data[at] == sign else -1


@njit(cache=True)
def _word(data: Bytes, at: int, word: bytes) -> int:
    """The place after `"word"`, -1 where something else stands."""
    size = len(word)
    if at + size + 2 > len(data) or data[at] != 34 or data[at + size + 1] != 34:
        return -1
    for i in range(size):
        if data[at + 1 + i] != word[i]:
            return -1
    return at + size + 2


@njit(cache=True)
def _key(data: Bytes, at: int, word: bytes) -> int:
    """The place of the value of key `word`, -1 where another stands."""
    at = _word(data, at, word)
    return _sign(data, at, 58) if at >= 0 else -1


@njit(cache=True)
def _put(out: Bytes, to: int, text: bytes) -> int:
    """Where `out` ends after `text` was put there."""
    for i in range(len(text)):
        out[to + i] = text[i]
    return to + len(text)


@njit(cache=True)
def _copy(out: Bytes, to: int, source: Bytes, start: int, end: int) -> int:
    """Where `out` ends after those bytes were put there; views of their own let the compiler take many at once."""
    part, place = source[start:end], out[to : to + end - start]
    for i in range(len(part)):
        place[i] = part[i]
    return to + end - start


@njit(cache=True)
def _entity(data: Bytes, at: int) -> bool:
    """May the ampersand at `at` begin an entity?"""
    for i in range(at + 1, min(at + 40, len(data))):
        byte = data[i]
        if byte == 59:
            return i > at + 1
        if not (48 <= byte <= 57 or 65 <= byte <= 90 or 97 <= byte <= 122 or byte == 35):
            return False
    return True


@njit(cache=True)
def _first(data: Bytes, at: int) -> int:
    """The character a JSON string begins with, where it is one that _judge or a mark of "no input" begins with."""
    byte = int(data[at])
    if byte == 92:
        return int(data[at + 1])
    if byte >= 0xE0:
        return (byte & 15) << 12 | int(data[at + 1] & 63) << 6 | int(data[at + 2] & 63)
    return byte


@njit(cache=True)
def _text(
    data: Bytes, at: int, out: Bytes, to: int, kind_of: Bytes, said: Table
) -> tuple[int, int]:
    """Copy the JSON string at `at`, CRLF made LF: (the place after it, the end of `out`), (-1, ...) for trouble.

    It is trouble if it is empty, or white space stands around the text. One loop, nearly all of the work here: what is
    not counted a character is counted off its bytes at the end, and bytes are copied many at once.
    """
    size = len(data)
    if at >= size or data[at] != 34:
        return -1, to
    begin = copied = at + 1
    at = begin
    hanguls = letters = crlf = 0
    beside = 0  # bytes that are no character of their own
    space = begin  # the place after the last white space
    while at + 3 < size:
        byte = data[at]
        if 0xEA <= byte <= 0xED:
            second, third = data[at + 1] ^ 0x80, data[at + 2] ^ 0x80
            code = ((byte & 15) << 12) | (second << 6) | third
            if (second | third) & 0xC0 or (
                (code < 0xAC00 or code > 0xD7A3) and kind_of[code] != PLAIN
            ):
                return -1, to
            hanguls += 1
            at += 3
        elif byte < 0x80:
            kind = kind_of[byte]
            if kind == PLAIN:
                letters += 97 <= (byte | 32) <= 122
                at += 1
            elif kind == SPACE:
                if at == begin:
                    return -1, to
                at += 1
                space = at
            elif kind == QUOTE:
                if begin == at or space == at:
                    return -1, to
                said[_CHARS] = at - begin - beside - 2 * hanguls
                said[_HANGULS], said[_LETTERS], said[_CRLF] = hanguls, letters + hanguls, crlf
                said[_FIRST] = _first(data, begin)
                return at + 1, _copy(out, to, data, copied, at)
            elif kind == ESCAPE:
                sign = data[at + 1]
                beside += 1
                if sign in (110, 114, 116):  # \n, \r, \t
                    if at == begin:
                        return -1, to
                    if sign == 114:
                        crlf = 1
                        if data[at + 2] == 92 and data[at + 3] == 110:
                            to = _copy(out, to, data, copied, at)
                            at += 2
                            beside += 2
                            copied = at
                        else:
                            to = _put(out, _copy(out, to, data, copied, at), _NEWLINE)
                            copied = at + 2
                    space = at + 2
                elif sign not in (34, 92):
                    return -1, to
                at += 2
            elif kind == ENTITY and not _entity(data, at):
                at += 1
            else:
                return -1, to
        elif 0xE0 <= byte < 0xF0:
            second, third = data[at + 1] ^ 0x80, data[at + 2] ^ 0x80
            if (second | third) & 0xC0:
                return -1, to
            code = ((byte & 15) << 12) | (second << 6) | third
            kind = kind_of[code]
            if code < 0x800 or kind == TROUBLE or (kind == SPACE and at == begin):
                return -1, to
            letters += byte < 0xEA and byte != 0xE2  # the scripts as language._scripts tells them
            beside += 2
            at += 3
            if kind == SPACE:
                space = at
        elif 0xC2 <= byte < 0xE0:
            second = data[at + 1] ^ 0x80
            if second & 0xC0:
                return -1, to
            kind = kind_of[((byte & 31) << 6) | second]
            if kind == TROUBLE or (kind == SPACE and at == begin):
                return -1, to
            letters += 0xC3 <= byte <= 0xC9 or byte >= 0xCD
            beside += 1
            at += 2
            if kind == SPACE:
                space = at
        elif byte == 0xF0:  # pictographs; whatever else lies beyond the basic plane is rare
            third, fourth = data[at + 2], data[at + 3]
            if data[at + 1] != 0x9F or third < 0x80 or third > 0xAB or fourth & 0xC0 != 0x80:
                return -1, to
            beside += 3
            at += 4
        else:
            return -1, to
    return -1, to


@njit(cache=True)
def _skip(data: Bytes, at: int) -> int:
    """The place after the JSON string at `at`, whatever it holds; -1 if it does not end."""
    if at >= len(data) or data[at] != 34:
        return -1
    at += 1
    while at < len(data):
        if data[at] == 34:
            return at + 1
        at += 2 if data[at] == 92 else 1
    return -1


@njit(cache=True)
def _skip_object(data: Bytes, at: int) -> int:
    """The place after the JSON object at `at`, whatever it holds; -1 if it does not end."""
    depth = 0
    while 0 <= at < len(data):
        byte = data[at]
        if byte == 34:
            at = _skip(data, at)
            continue
        at += 1
        if byte in (123, 91):
            depth += 1
        elif byte in (125, 93):
            depth -= 1
            if depth == 0:
                return at
    return -1


@njit(cache=True)
def _next(data: Bytes, at: int, last: bool) -> int:
    """Where the next record begins, the last one having ended at `at`; len(data): nowhere; -1: this is no array."""
    at = _space(data, at)
    size = len(data)
    if at == size:
        return -1 if last else size
    if data[at] == 44:
        at = _space(data, at + 1)
        return at if at < size and data[at] == 123 else -1
    return size if last and data[at] == 93 and _space(data, at + 1) == size else -1


@njit(cache=True)
def _number(out: Bytes, to: int, value: int) -> int:
    """Put `value` in digits."""
    size, rest = 1, value
    while rest >= 10:
        rest //= 10
        size += 1
    for i in range(size):
        out[to + size - 1 - i] = 48 + value % 10
        value //= 10
    return to + size


@njit(cache=True)
def _judge(row: Table, said: Table, least: int, most: int) -> bool:
    """Is the answer, copied last, one that no rule looks at twice?"""
    if said[_FIRST] == 58 or said[_CHARS] < least:  # a leading colon
        return False
    if said[_CHARS] >= 20 and 10 * said[_HANGULS] < 3 * said[_LETTERS]:  # language.is_untranslated
        return False
    return bool(row[ASKED] + row[CONTEXT] + said[_CHARS] <= most)


@njit(cache=True)
def _origin(
    origins: Bytes, to: int, head: Bytes, data: Bytes, start: int, end: int, turn: int
) -> int:
    to = _copy(origins, to, head, 0, len(head))
    to = _copy(origins, to, data, start, end)
    to = _number(origins, _put(origins, to, _TURN), turn)
    return _put(origins, to, b"}\n")


@njit(cache=True)
def conversations(
    data: Bytes,
    start: int,
    last: bool,
    head: Bytes,
    limits: tuple[int, int],
    kind_of: Bytes,
    head_of: Bytes,
    lines: Bytes,
    origins: Bytes,
    rows: Table,
    records: Table,
) -> tuple[int, int]:
    """KoVicuna's records whose questions and answers simply take turns; returns how many `rows` and `records`.

    The first begins at `start`; the array's end is in `data` where it is the `last` of its file. A pair that some rule
    looks at twice is in `rows` by the place of its texts alone. `head` begins every line of `origins`; `limits` are
    the fewest characters of an answer and the most of a row. A record not taken has PLAINLY 0 and no rows.
    (-1, -1): these are no records in an array, or too many for `records`.
    """
    said = np.zeros(_SLOTS, np.int32)
    count = to = told = number = 0
    here = start
    while here < len(data):
        if number == len(records):
            return -1, -1
        first_row, first_to, first_told = count, to, told
        crlfs = 0
        at = _sign(data, here, 123)
        at = _key(data, at, _ID) if at >= 0 else -1
        name = at + 1
        if at >= 0:  # `origins` is scratch for the name here
            at, _ = _text(data, at, origins, told, kind_of, said)
            if said[_CRLF]:
                at = -1
        name_end = at - 1
        at = _sign(data, at, 44) if at >= 0 else -1
        at = _key(data, at, _CONVERSATIONS) if at >= 0 else -1
        at = _sign(data, at, 91) if at >= 0 else -1
        turn = 0
        while at >= 0:
            plain, crlf, begin = True, 0, to
            row = rows[count]
            for side in range(2):
                at = _sign(data, at, 123)
                at = _key(data, at, _FROM) if at >= 0 else -1
                if at >= 0:
                    at = _word(data, at, _HUMAN if side == 0 else _GPT)
                at = _sign(data, at, 44) if at >= 0 else -1
                at = _key(data, at, _VALUE) if at >= 0 else -1
                if at < 0:
                    break
                row[FIRST if side == 0 else LAST] = at
                after = -1
                if plain:
                    to = _put(lines, to, _OPEN if side == 0 else _RESPONSE)
                    after, to = _text(data, at, lines, to, kind_of, said)
                    crlf |= said[_CRLF]
                if after < 0:
                    plain = False
                    after = _skip(data, at)
                row[FIRST_END if side == 0 else LAST_END] = after
                at = _sign(data, after, 125) if after >= 0 else -1
                if at >= 0 and side == 0:
                    at = _sign(data, at, 44)
                if at < 0:
                    break
                if plain and side == 0:
                    row[ASKED], row[CONTEXT], row[ASKED_END] = said[_CHARS], 0, to
                    to = _put(lines, to, _MIDDLE)
                    row[CONTEXT_END] = to
                elif plain:
                    row[ANSWER] = said[_CHARS]
                    plain = _judge(row, said, limits[0], limits[1])
            if at < 0:
                break
            row[PLAIN_ROW] = plain
            if plain:
                to = _put(lines, to, _CLOSE)
                row[START], row[END], row[ORIGIN] = begin, to, told
                told = _origin(origins, told, head, data, name, name_end, turn)
                row[ORIGIN_END] = told
                crlfs += crlf
            else:
                to = row[START] = row[END] = row[ASKED_END] = row[CONTEXT_END] = begin
                row[ASKED] = row[CONTEXT] = row[ANSWER] = 0
                row[ORIGIN] = row[ORIGIN_END] = told
            count += 1
            turn += 1
            if at < len(data) and data[at] == 93:
                at = _sign(data, at + 1, 125)
                break
            at = _sign(data, at, 44)
        if at < 0:
            count, to, told = first_row, first_to, first_told
        record = records[number]
        record[PLAINLY], record[ROWS], record[CRLF] = at >= 0, count - first_row, crlfs
        record[ID], record[ID_END] = name, name_end
        record[BEGIN], record[STOP] = here, at if at >= 0 else _skip_object(data, here)
        here = _next(data, record[STOP], last) if record[STOP] >= 0 else -1
        if here < 0:
            return -1, -1
        number += 1
    return count, number


@njit(cache=True)
def instructions(
    data: Bytes,
    start: int,
    last: bool,
    head: Bytes,
    limits: tuple[int, int],
    kind_of: Bytes,
    head_of: Bytes,
    lines: Bytes,
    origins: Bytes,
    rows: Table,
    records: Table,
) -> tuple[int, int]:
    """Alpaca's records {"instruction", "input", "output"} in this order; as `conversations`."""
    said = np.zeros(_SLOTS, np.int32)
    count = to = told = number = 0
    here = start
    while here < len(data):
        if number == len(records):
            return -1, -1
        first_to = to
        crlf = 0
        row = rows[count]
        row[START], row[PLAIN_ROW] = to, 1
        at = _sign(data, here, 123)
        for side in range(3):
            if at >= 0 and side > 0:
                at = _sign(data, at, 44)
            if at >= 0:
                at = _key(data, at, _INSTRUCTION if side == 0 else _INPUT if side == 1 else _OUTPUT)
            if at < 0:
                break
            to = _put(lines, to, _OPEN if side == 0 else _MIDDLE if side == 1 else _RESPONSE)
            said[_CHARS] = said[_CRLF] = 0
            if side == 1 and at + 1 < len(data) and data[at] == 34 and data[at + 1] == 34:
                at += 2
            else:
                at, to = _text(data, at, lines, to, kind_of, said)
            if at < 0:
                break
            crlf |= said[_CRLF]
            if side == 0:
                row[ASKED], row[ASKED_END] = said[_CHARS], to
            elif side == 1:
                row[CONTEXT], row[CONTEXT_END] = said[_CHARS], to
                if said[_CHARS] and head_of[said[_FIRST]]:  # fixes.no_input_marker may know it
                    at = -1
            else:
                row[ANSWER] = said[_CHARS]
                if not _judge(row, said, limits[0], limits[1]):
                    at = -1
            if at < 0:
                break
        at = _sign(data, at, 125) if at >= 0 else -1
        if at >= 0:
            to = _put(lines, to, _CLOSE)
            row[END], row[ORIGIN] = to, told
            told = _origin(origins, told, head, data, 0, 0, 0)
            row[ORIGIN_END] = told
            count += 1
        else:
            to = first_to
        record = records[number]
        record[PLAINLY] = record[ROWS] = at >= 0
        record[ID], record[ID_END], record[CRLF] = 0, 0, crlf
        record[BEGIN], record[STOP] = here, at if at >= 0 else _skip_object(data, here)
        here = _next(data, record[STOP], last) if record[STOP] >= 0 else -1
        if here < 0:
            return -1, -1
        number += 1
    return count, number
