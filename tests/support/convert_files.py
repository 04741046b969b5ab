"""Small made-up files of every source the converter knows, in the shapes found in public."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = [
    "바다",
    "하늘",
    "나무",
    "구름",
    "강물",
    "노래",
    "편지",
    "골목",
    "겨울",
    "아침",
    "시장",
    "마을",
    "기차",
    "바람",
    "달빛",
]
PARTICLES = ["은 푸르다.", "이 보인다.", "을 좋아해요.", "에서 만났다.", "와 함께 걷는다."]


def sentence(seed: int, length: int = 6) -> str:
    """A Korean sentence of `length` words that no other seed has."""
    words = [WORDS[(seed * 7 + place * (seed % 5 + 1)) % len(WORDS)] for place in range(length)]
    return " ".join([*words, f"{seed}번", words[0] + PARTICLES[seed % len(PARTICLES)]])


def alpaca(rows: int, start: int = 0) -> list[dict[str, Any]]:
    """KoAlpaca records; every third has an input."""
    return [
        {
            "instruction": f"{sentence(n)} 설명하세요.",
            "input": sentence(n + 1000) if n % 3 == 0 else "",
            "output": f"{sentence(n + 2000)} {sentence(n + 3000)}",
        }
        for n in range(start, start + rows)
    ]


def kovicuna(conversations: int, pairs: int = 3) -> list[dict[str, Any]]:
    """KoVicuna conversations of `pairs` questions and answers."""
    return [
        {
            "id": f"c{n}",
            "conversations": [
                {"from": who, "value": sentence(n * 100 + turn)}
                for turn, who in enumerate(["human", "gpt"] * pairs)
            ],
        }
        for n in range(conversations)
    ]


def korquad1(articles: int, questions: int = 4) -> dict[str, Any]:
    """A KorQuAD 1.0 file of `articles` with one paragraph each."""
    data = []
    for n in range(articles):
        context = " ".join(sentence(n * 50 + k, 8) for k in range(12))
        answer = context.split(". ")[2]
        qas = [
            {
                "id": f"{n}-{k}",
                "question": f"{sentence(n * 10 + k, 3)} 무엇인가?",
                "answers": [{"text": answer, "answer_start": context.index(answer)}],
            }
            for k in range(questions)
        ]
        data.append({"title": f"문서 {n}", "paragraphs": [{"context": context, "qas": qas}]})
    return {"version": "KorQuAD_v1.0_train", "data": data}


def korquad2(pages: int) -> dict[str, Any]:
    """A KorQuAD 2.1 file: HTML pages with two questions each."""
    data = []
    for n in range(pages):
        body = "".join(
            f"<p>{sentence(n * 30 + k)} <a>{WORDS[k]}</a>도 있다.</p>\n" for k in range(9)
        )
        table = f"<table><tbody><tr><th>이름</th><td>{WORDS[n % 9]}</td></tr></tbody></table>"
        context = f"<html><body><h1>쪽 {n}</h1>{body}<h2>표</h2>{table}</body></html>"
        plain = sentence(n * 30 + 4)
        qas = [
            {
                "id": str(n * 2 + k),
                "question": f"{sentence(n + k, 3)} 무엇인가?",
                "answer": {"text": text, "answer_start": context.index(text)},
            }
            for k, text in enumerate([plain, table])
        ]
        raw = f"<!DOCTYPE html>{context}" + "<!-- raw -->" * 50
        data.append(
            {"title": f"쪽 {n}", "url": "", "context": context, "raw_html": raw, "qas": qas}
        )
    return {"data": data}


def write_json(path: Path, value: object, **how: Any) -> Path:
    """`value` as a JSON file, Hangul unescaped unless told otherwise."""
    path.write_text(json.dumps(value, **{"ensure_ascii": False, **how}), encoding="utf-8")
    return path


def write_lines(path: Path, values: list[dict[str, Any]]) -> Path:
    """`values` as JSONL."""
    text = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
    path.write_text(text, encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSONL file; lines end at LF and nowhere else."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
