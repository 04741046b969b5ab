"""A whole conversion: every unit accounted for, the same bytes every time, nothing half written."""

from __future__ import annotations

import gc
import gzip
import json
import multiprocessing
import re
import shutil
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from pyarrow import parquet
from support.convert_files import (
    alpaca,
    korquad1,
    korquad2,
    kovicuna,
    read_lines,
    write_json,
    write_lines,
)

from kodolly_adapters import convert as convert_room
from kodolly_adapters.convert.cleaning import rules
from kodolly_adapters.convert.cleaning.rules import OFF
from kodolly_adapters.convert.options import Options
from kodolly_adapters.convert.output.summary import Summary
from kodolly_adapters.convert.run import convert
from kodolly_adapters.errors import EngineError, InputError, OutputError
from kodolly_adapters.terminal import Progress

pytestmark = pytest.mark.usefixtures("no_pictures")

FIELDS = ["instruction", "context", "response", "category"]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """One file of each of the study's four sources."""
    folder = tmp_path / "raw"
    folder.mkdir()
    write_json(folder / "ko_alpaca_data.json", alpaca(60), indent=2)
    write_json(folder / "ko_dataset.json", kovicuna(20))
    write_json(folder / "KorQuAD_v1.0_train.json", korquad1(9), ensure_ascii=True)
    page = json.dumps(korquad2(6), ensure_ascii=False)
    with zipfile.ZipFile(folder / "KorQuAD_2.1_train_00.zip", "w") as archive:
        archive.writestr("korquad2.1_train_00.json", page)
    return folder


class Watcher(Progress):
    """A progress that calls `look` with the output folder whenever the converter reports to it."""

    def __init__(self, out: Path, look: Callable[[Path], object]) -> None:
        super().__init__("convert", show=False)
        self._out, self._look = out, look

    def add(self, count: int) -> None:
        super().add(count)
        self._look(self._out)

    def note(self, text: str) -> None:
        super().note(text)
        self._look(self._out)


def parts(out: Path) -> list[Path]:
    """The finished parts of an unfinished run."""
    return sorted((out / ".work" / "parts").glob("*.part"))


def run(arguments: list[Path], out: Path, *, force: bool = False, **options: object) -> Summary:
    how = Options(**{"validation": 0.1, **options})  # type: ignore[arg-type]
    return convert([str(a) for a in arguments], out, how, jobs=1, force=force)


def rows(out: Path) -> list[dict[str, str]]:
    return [row for name in ("train", "validation") for row in read_lines(out / f"{name}.jsonl")]


def files(out: Path) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_all_sources_in_one_run(raw: Path, tmp_path: Path) -> None:
    """Each source is recognised, each row has the four fields, and the counts are the files' own."""
    summary = run([raw], tmp_path / "out")
    counts_by_source = {source.name: source.counts for source in summary.sources}
    assert {name: counts.rows for name, counts in counts_by_source.items()} == {
        "koalpaca": 60,
        "kovicuna": 60,
        "korquad1": 36,
        "korquad2": 12,
    }
    assert counts_by_source["kovicuna"].units == 120
    assert summary.rejected_lines == 0
    assert all(list(row) == FIELDS for row in rows(tmp_path / "out"))
    assert len(rows(tmp_path / "out")) == 168
    assert {row["category"] for row in rows(tmp_path / "out")} == {"open_qa"}
    written = msgspec.json.decode((tmp_path / "out" / "convert.json").read_bytes(), type=Summary)
    assert written == summary


@pytest.mark.parametrize("layout", ["array", "lines"])
def test_a_large_file_loses_nothing(tmp_path: Path, layout: str) -> None:
    """A file of several megabytes is converted in several parts, of megabytes each; its rows come in order.

    Rejected records in all parts are named with their line and byte in the whole file.
    """
    records = alpaca(25_000)
    for record in records[::1000]:
        record["output"] = " "
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    text = "\n".join(lines) if layout == "lines" else "[" + ",\n".join(lines) + "]"
    file = tmp_path / "ko_alpaca_data.json"
    file.write_text(text, encoding="utf-8")
    most = 0

    def count(out: Path) -> None:
        nonlocal most
        most = max(most, len(parts(out)))

    out = tmp_path / "out"
    convert([str(file)], out, Options(validation=0.0), jobs=1, progress=Watcher(out, count))
    assert 2 <= most <= file.stat().st_size >> 20
    assert [row["instruction"] for row in rows(out)] == [
        record["instruction"] for record in records if record["output"] != " "
    ]
    separator = len(text.encode()) - sum(len(line.encode()) for line in lines)
    separator //= len(lines) - 1
    begins = 1 if layout == "array" else 0
    places = []
    for number, line in enumerate(lines):
        if number % 1000 == 0:
            places.append((number + 1, begins))
        begins += len(line.encode()) + separator
    rejected_lines = read_lines(out / "rejected.jsonl")
    assert [(one["line"], one["byte"]) for one in rejected_lines] == places


def test_text_stays_readable_on_disk(raw: Path, tmp_path: Path) -> None:
    """Hangul is written as itself, not as escapes."""
    run([raw], tmp_path / "out")
    text = (tmp_path / "out" / "train.jsonl").read_text(encoding="utf-8")
    assert "바다" in text
    assert "\\u" not in text


@pytest.mark.parametrize("mode", ["count", "drop", "off"])
def test_exact_duplicates(tmp_path: Path, mode: str) -> None:
    """A row that stood earlier, in the same or another file, is counted, dropped or ignored."""
    first = write_json(tmp_path / "ko_alpaca_data.json", alpaca(30) + alpaca(5))
    second = write_lines(tmp_path / "ko_alpaca_data_2.jsonl", alpaca(10, start=25))
    summary = run([first, second], tmp_path / "out", rules={"duplicate": mode})
    dropped = 10 if mode == "drop" else 0
    assert summary.duplicates.exact_rows == (0 if mode == "off" else 10)
    assert len(rows(tmp_path / "out")) == 45 - dropped
    rejected = read_lines(tmp_path / "out" / "rejected.jsonl")
    assert [one["reason"] for one in rejected] == ["duplicate"] * dropped
    if dropped:
        assert len({json.dumps(row) for row in rows(tmp_path / "out")}) == 35
        assert {one["file"] for one in rejected} == {first.name, second.name}
        assert rejected[-1]["line"] == 5  # the second file's fifth line is the last copy


def test_near_duplicates(tmp_path: Path) -> None:
    """A row with a word changed is near; one with other words is not; off by default."""
    records = alpaca(40)
    near = [{**record, "output": record["output"] + " 덧붙임"} for record in records[:8]]
    long = {"instruction": "길게 쓰세요.", "input": ""}
    words = [f"낱말{n}" for n in range(60)]
    records += [{**long, "output": " ".join(words)}, {**long, "output": " ".join([*words, "끝"])}]
    file = write_json(tmp_path / "ko_alpaca_data.json", records + near)
    summary = run([file], tmp_path / "out", rules={"near-duplicate": "drop"})
    # The longest near copies are found for certain; short ones differ by a tenth of their words.
    assert 1 <= summary.duplicates.near_rows <= 9
    responses = [row["response"] for row in rows(tmp_path / "out")]
    assert " ".join(words) in responses
    assert " ".join([*words, "끝"]) not in responses
    assert {record["output"] for record in alpaca(40)} <= set(responses)
    assert run([file], tmp_path / "off").duplicates.near_rows == 0


def test_a_row_never_vanishes_with_all_its_copies(tmp_path: Path) -> None:
    """Copies on both sides of the split: duplicates and leakage together leave one of them, in validation."""
    pair = [{"from": "human", "value": "같은 질문?"}, {"from": "gpt", "value": "같은 대답."}]
    talks = [{"id": f"x{n}", "conversations": pair} for n in range(20)]
    file = write_json(tmp_path / "ko_dataset.json", [*talks, *kovicuna(10)])
    for number, rule in enumerate(("duplicate", "near-duplicate")):
        modes = {"duplicate": OFF, "near-duplicate": OFF, rule: "drop"}
        out = tmp_path / str(number)
        run([file], out, rules=modes, validation=0.5)
        responses = [row["response"] for row in rows(out)]
        assert responses.count("같은 대답.") == 1
        assert "같은 대답." in [row["response"] for row in read_lines(out / "validation.jsonl")]
        if rule == "duplicate":  # these ones are all different, if only in a few words
            answers = [turn["value"] for talk in kovicuna(10) for turn in talk["conversations"]]
            assert set(answers[1::2]) <= set(responses)


def test_the_split_is_by_hash_and_keeps_groups_whole(raw: Path, tmp_path: Path) -> None:
    """A conversation or an article is never on both sides; the share is about what was asked for."""
    write_json(raw / "ko_dataset.json", kovicuna(400, pairs=2))
    run([raw / "ko_dataset.json"], tmp_path / "out", provenance=True, validation=0.2)
    ids = [
        {one["id"] for one in read_lines(tmp_path / "out" / f"{name}.provenance.jsonl")}
        for name in ("train", "validation")
    ]
    assert not ids[0] & ids[1]
    assert 0.1 < len(ids[1]) / 400 < 0.3
    again = run([raw / "ko_dataset.json"], tmp_path / "none", validation=0.0)
    assert [split.rows for split in again.splits] == [800, 0]


def test_a_conversation_without_a_name_stays_whole_too(tmp_path: Path) -> None:
    """Conversations without ids are kept together by their first question."""
    talks = [{"conversations": talk["conversations"]} for talk in kovicuna(200, pairs=3)]
    talks.append({"conversations": [{"from": "system", "value": "규칙"}]})
    run([write_json(tmp_path / "ko_dataset.json", talks)], tmp_path / "out", validation=0.5)
    sides = [
        {row["instruction"] for row in read_lines(tmp_path / "out" / f"{name}.jsonl")}
        for name in ("train", "validation")
    ]
    for talk in talks[:-1]:
        questions = {turn["value"] for turn in talk["conversations"][::2]}
        assert questions <= sides[0] or questions <= sides[1]


def test_official_splits_and_leakage(tmp_path: Path) -> None:
    """With --splits official a dev file is the validation split, and train rows on its passages are dropped."""
    train, dev = korquad1(6), korquad1(8)
    dev["data"] = dev["data"][4:]  # articles 4 and 5 are in both
    write_json(tmp_path / "KorQuAD_v1.0_train.json", train)
    write_json(tmp_path / "KorQuAD_v1.0_dev.json", dev)
    both = [tmp_path / "KorQuAD_v1.0_train.json", tmp_path / "KorQuAD_v1.0_dev.json"]
    summary = run(both, tmp_path / "out", splits="official")
    assert [split.rows for split in summary.splits] == [4 * 4, 4 * 4]
    rejected = read_lines(tmp_path / "out" / "rejected.jsonl")
    assert [one["reason"] for one in rejected] == ["leakage"] * 8
    summary = run(both, tmp_path / "leaks", splits="official", rules={"leakage": "count"})
    assert [split.rows for split in summary.splits] == [6 * 4, 4 * 4]


def test_provenance_stands_beside_the_rows(raw: Path, tmp_path: Path) -> None:
    """Line by line the provenance says where a row came from, and the rows do not hold it."""
    run([raw], tmp_path / "out", provenance=True)
    for name in ("train", "validation"):
        written_rows = read_lines(tmp_path / "out" / f"{name}.jsonl")
        origins = read_lines(tmp_path / "out" / f"{name}.provenance.jsonl")
        assert len(written_rows) == len(origins)
        for row, origin in zip(written_rows, origins, strict=True):
            assert list(row) == FIELDS
            assert list(origin) == ["source", "file", "id", "turn"]
            if origin["source"] == "kovicuna":
                record = kovicuna(20)[int(origin["id"][1:])]["conversations"]
                assert row["instruction"] == record[origin["turn"] * 2]["value"]


def test_parquet_holds_the_same_rows(raw: Path, tmp_path: Path) -> None:
    """Parquet files have the same rows in the same order, with typed columns."""
    run([raw], tmp_path / "lines", provenance=True)
    run([raw], tmp_path / "columns", provenance=True, format="parquet")
    for name in ("train", "validation", "train.provenance"):
        table = parquet.read_table(tmp_path / "columns" / f"{name}.parquet")
        assert table.to_pylist() == read_lines(tmp_path / "lines" / f"{name}.jsonl")


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_whole_dialogues(raw: Path, tmp_path: Path, form: str) -> None:
    """--conversations gives one row a dialogue in OpenAI's messages, its questions' contexts beside them."""
    run([raw], tmp_path / "out", conversations=True, format=form)
    if form == "parquet":
        dialogues = parquet.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    else:
        dialogues = read_lines(tmp_path / "out" / "train.jsonl")
    lengths = {len(row["messages"]) for row in dialogues}
    assert lengths == {2, 6}
    dialogue = next(row["messages"] for row in dialogues if len(row["messages"]) == 6)
    assert [message["role"] for message in dialogue] == ["user", "assistant"] * 3
    assert any(row["messages"][0].get("context") for row in dialogues if len(row["messages"]) == 2)


def test_bad_rows_are_named_with_file_line_and_reason(tmp_path: Path) -> None:
    """What becomes no row stands in rejected.jsonl, and kept and refused make the input."""
    records = alpaca(5)
    records[1]["output"] = "  "
    records[3]["instruction"] = 7
    file = write_lines(tmp_path / "KoAlpaca_v1.1.jsonl", records)
    file.write_bytes(file.read_bytes() + b'{"instruction": "cut\n')
    summary = run([file], tmp_path / "out")
    rejected = read_lines(tmp_path / "out" / "rejected.jsonl")
    assert [(one["line"], one["reason"]) for one in rejected] == [
        (2, "empty"),
        (4, "wrong-shape"),
        (6, "not-json"),
    ]
    assert {one["file"] for one in rejected} == {"KoAlpaca_v1.1.jsonl"}
    assert (summary.inputs[0].counts.units, summary.inputs[0].counts.kept_units) == (6, 3)


def test_names_that_are_no_unicode_do_no_harm(tmp_path: Path) -> None:
    """Half a surrogate pair in an id is written as `?`, kept row or refused."""
    records = kovicuna(2, pairs=1)
    for record in records:
        record["id"] = "c\ud83d"
    records[1]["conversations"][1]["value"] = " "
    file = write_json(tmp_path / "ko_dataset.json", records, ensure_ascii=True)
    run([file], tmp_path / "out", provenance=True, validation=0.0)
    out = tmp_path / "out"
    assert [one["id"] for one in read_lines(out / "train.provenance.jsonl")] == ["c?"]
    assert [one["id"] for one in read_lines(out / "rejected.jsonl")] == ["c?"]


def test_a_broken_file_leaves_nothing_behind(raw: Path, tmp_path: Path) -> None:
    """A truncated file stops the run with its name and byte; no row file is there, and none half written."""
    file = raw / "ko_dataset.json"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"ko_dataset\.json: byte \d+: ends in the middle"):
        run([raw], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".work"]
    summary = run([raw], tmp_path / "rest", keep_going=True)
    assert [one["reason"] for one in read_lines(tmp_path / "rest" / "rejected.jsonl")] == [
        "not-json"
    ]
    assert summary.faults() == []


def test_a_repaired_file_continues_the_run(raw: Path, tmp_path: Path) -> None:
    """After the broken file was fetched again the same command goes on and gives what it always would."""
    file = raw / "ko_dataset.json"
    good = file.read_bytes()
    run([raw], tmp_path / "expected")
    file.write_bytes(good[:-100])
    with pytest.raises(InputError):
        run([raw], tmp_path / "out")
    file.write_bytes(good)
    run([raw], tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "expected")


def test_an_unknown_file_is_an_error_only_when_it_was_asked_for(raw: Path, tmp_path: Path) -> None:
    """In a folder it is passed over and listed; named by hand it stops the run and says what is known."""
    notes = raw / "notes.txt"
    notes.write_text("읽어 보세요\n", encoding="utf-8")
    write_json(raw / "other.json", [{"prompt": "x"}])
    (raw / "empty.json").touch()
    summary = run([raw], tmp_path / "out")
    assert [one.name for one in summary.skipped] == ["empty.json", "notes.txt", "other.json"]
    assert "prompt" in summary.skipped[2].why
    with pytest.raises(
        InputError, match=r"other\.json: belongs to no known source.*keys prompt;.*--source.*--map"
    ):
        run([raw / "other.json"], tmp_path / "out2")
    with pytest.raises(InputError, match=r"empty\.json: is empty"):
        run([raw / "empty.json"], tmp_path / "out3")


def test_finished_rows_are_not_overwritten(raw: Path, tmp_path: Path) -> None:
    """A folder with finished rows, or with anything else, is refused unless forced."""
    run([raw], tmp_path / "out")
    with pytest.raises(OutputError, match="holds finished rows"):
        run([raw], tmp_path / "out")
    with pytest.raises(OutputError, match="holds the input"):
        run([raw], raw)
    with pytest.raises(OutputError, match="is not empty"):
        run([raw], Path(__file__).parent)
    with pytest.raises(OutputError, match="is a file"):
        run([raw], raw / "ko_dataset.json")


def test_nothing_of_other_peoples_is_touched(raw: Path, tmp_path: Path) -> None:
    """--force replaces a conversion's own files, and neither inputs nor anything else beside them."""
    mine = tmp_path / "mine"
    (mine / "pictures").mkdir(parents=True)
    (mine / "pictures" / "mine.png").write_bytes(b"x")
    (mine / "notes.jsonl").write_bytes(b"x")
    before = files(mine)
    with pytest.raises(OutputError, match="holds no conversion"):
        run([raw], mine, force=True)
    assert files(mine) == before
    run([raw], tmp_path / "out")
    shutil.copytree(mine, tmp_path / "out", dirs_exist_ok=True)
    run([raw], tmp_path / "out", force=True)
    assert files(mine).items() <= files(tmp_path / "out").items()
    with pytest.raises(OutputError, match="holds the input"):
        run([tmp_path / "out" / "train.jsonl"], tmp_path / "out", force=True)


def test_finished_rows_outlive_a_failed_attempt_to_replace_them(raw: Path, tmp_path: Path) -> None:
    """After a forced run that failed, only another forced run, or its repetition, replaces the rows."""
    run([raw], tmp_path / "out")
    before = files(tmp_path / "out")
    (raw / "ko_dataset.json").write_bytes((raw / "ko_dataset.json").read_bytes()[:-100])
    with pytest.raises(InputError):
        run([raw], tmp_path / "out", force=True)
    assert files(tmp_path / "out").items() >= before.items()
    (tmp_path / "out" / ".work" / "forced").unlink()
    with pytest.raises(OutputError, match="holds finished rows"):
        convert([str(raw)], tmp_path / "out", jobs=1, restart=True)


def test_a_first_try_that_made_nothing_binds_nobody(tmp_path: Path) -> None:
    """When a run failed before its first part, the corrected command simply runs."""
    file = write_json(tmp_path / "mystery.json", [{"frage": "x"}])
    with pytest.raises(InputError, match="--source"):
        run([file], tmp_path / "out")
    with pytest.raises(InputError, match="--source"):
        run([file], tmp_path / "out", validation=0.5)


def test_an_incomplete_part_is_made_again(raw: Path, tmp_path: Path) -> None:
    """A part that lacks a byte, or all, as after a power cut, does not count: its shard is converted again."""
    run([raw], tmp_path / "expected", provenance=True)
    file = raw / "ko_dataset.json"
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    with pytest.raises(InputError):
        run([raw], tmp_path / "out", provenance=True)
    file.write_bytes(content)
    first, second, *_ = parts(tmp_path / "out")
    first.write_bytes(first.read_bytes()[:-1])
    second.write_bytes(b"")
    run([raw], tmp_path / "out", provenance=True)
    assert files(tmp_path / "out") == files(tmp_path / "expected")


def test_leakage_names_the_question(tmp_path: Path) -> None:
    """A row dropped as leakage is told by its id."""
    write_json(tmp_path / "KorQuAD_v1.0_train.json", korquad1(1))
    write_json(tmp_path / "KorQuAD_v1.0_dev.json", korquad1(1))
    run([tmp_path], tmp_path / "out", splits="official")
    rejected = read_lines(tmp_path / "out" / "rejected.jsonl")
    assert [(one["reason"], one["id"]) for one in rejected] == [
        ("leakage", f"0-{number}") for number in range(4)
    ]


def test_a_missing_part_is_an_error(raw: Path, tmp_path: Path) -> None:
    """A part that no longer is in the run's folder, as when workers do not share it, loses no rows silently."""

    def remove(out: Path) -> None:
        for part in parts(out):
            part.unlink()

    with pytest.raises(EngineError, match="do all workers share that folder"):
        convert([str(raw)], tmp_path / "out", jobs=1, progress=Watcher(tmp_path / "out", remove))
    assert not list((tmp_path / "out").glob("[!.]*"))


def test_an_unfinished_run_is_not_continued_with_other_options(raw: Path, tmp_path: Path) -> None:
    """Other options over an unfinished run are an error that says how to go on; --restart forgets it."""
    (raw / "ko_dataset.json").write_bytes((raw / "ko_dataset.json").read_bytes()[:-100])
    with pytest.raises(InputError):
        run([raw], tmp_path / "out")
    write_json(raw / "ko_dataset.json", kovicuna(3))
    with pytest.raises(OutputError, match="--restart"):
        run([raw], tmp_path / "out", validation=0.3)
    convert([str(raw)], tmp_path / "out", Options(validation=0.3), jobs=1, restart=True)
    assert (
        json.loads((tmp_path / "out" / "convert.json").read_bytes())["options"]["validation"] == 0.3
    )


def test_compressed_input_gives_the_rows_of_the_plain_file(raw: Path, tmp_path: Path) -> None:
    """A gz gives the same rows and, as it is hashed unpacked, the same SHA-256 as the plain file."""
    plain = raw / "ko_dataset.json"
    packed = tmp_path / "ko_dataset.json.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    one, other = run([plain], tmp_path / "a"), run([packed], tmp_path / "b")
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert one.inputs[0].sha256 == other.inputs[0].sha256


def test_a_library_call_leaves_its_process_as_it_is(raw: Path, tmp_path: Path) -> None:
    """With one job all is done by the caller, whose collector stays on; no thread and no process is left."""
    collector_states, threads = set(), set(threading.enumerate())
    watcher = Watcher(tmp_path / "out", lambda out: collector_states.add(gc.isenabled()))
    convert([str(raw)], tmp_path / "out", jobs=1, progress=watcher)
    assert collector_states == {True}
    assert set(threading.enumerate()) == threads
    assert multiprocessing.active_children() == []


def test_every_reason_has_a_meaning() -> None:
    """Each reason that a source or the decoder gives is a rule or explained in the rules' table."""
    folder = Path(convert_room.__file__).parent
    reasons = {
        reason
        for file in folder.rglob("*.py")
        for reason in re.findall(
            r'(?:Rejection\(|_reject\(\s*\w+,\s*\w+,)\s*"([a-z0-9-]+)"', file.read_text()
        )
    }
    assert reasons >= {"not-json", "no-output", "not-unicode", "no-turns", "system-turn"}
    assert [name for name in reasons if not rules.meaning(name)] == []
