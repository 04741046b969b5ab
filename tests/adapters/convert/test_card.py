"""The data card: what it warns of, what it never shows, and that its counts are checked."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import numpy as np
import pytest

from kodolly_adapters.convert.options import Options, command_line, plain_options
from kodolly_adapters.convert.output.dataset_card import card
from kodolly_adapters.convert.output.pictures import draw
from kodolly_adapters.convert.output.report import LINES
from kodolly_adapters.convert.output.summary import (
    EDGES,
    FIELDS,
    InputSummary,
    Lengths,
    RuleCount,
    Sample,
    SkippedFile,
    SourceSummary,
    SplitSummary,
    Summary,
    write_summary,
)
from kodolly_adapters.convert.part import Counts
from kodolly_adapters.convert.reading.source import UNKNOWN, Licence
from kodolly_adapters.convert.schema import Row
from kodolly_adapters.markdown_text import code, table, text

FREE = Licence("MIT", "https://example.org/mit", True, True, "Name the authors.")
NON_COMMERCIAL = Licence("CC BY-NC 4.0", "https://example.org/nc", False, True, "Never sell it.")
NO_DERIVATIVES = Licence("CC BY-ND 2.0 KR", "https://example.org/nd", True, False, "Keep it.")
ROW = Row("수도는 어디인가?", "대한민국의 수도", "서울", "open_qa")


def a_source(name: str, licence: Licence, rows: int = 10, rejected: int = 2) -> SourceSummary:
    """A source with `rows` rows kept, all like ROW."""
    return SourceSummary(
        name=name,
        title=name.upper(),
        unit="questions",
        licences=(licence,),
        counts=Counts(
            records=5,
            units=rows + rejected,
            rows=rows,
            kept_units=rows,
            rejections={"empty": rejected} if rejected else {},
            rejected_lines=rejected,
        ),
        rules=(
            RuleCount(name="nfc", mode="fix", hits=1234567),
            RuleCount(name="near-duplicate", mode="off", hits=0),
        ),
        lengths={field: Lengths.of(np.full(rows, 9)) for field in FIELDS},
        samples=(Sample.of(ROW, [licence]),),
    )


def a_summary(*sources: SourceSummary, prefix: str = "") -> Summary:
    """A summary that adds up, with one input a source."""
    return Summary(
        version="0.1.0",
        options=plain_options(Options()),
        rules={"nfc": "fix", "near-duplicate": "off"},
        command=command_line(Options(), [f"{prefix}{s.name}.json" for s in sources]),
        inputs=tuple(
            InputSummary(
                name=f"{s.name}.json",
                source=s.name,
                bytes=100,
                sha256="ab" * 32,
                licence=s.licences[0].name,
                counts=s.counts,
            )
            for s in sources
        ),
        sources=sources,
        splits=(
            SplitSummary(
                name="train",
                rows=sum(s.counts.rows for s in sources),
                bytes=1,
                file="train.jsonl",
                sha256="cd" * 32,
            ),
        ),
        rejected_lines=sum(s.counts.rejected_lines for s in sources),
    )


def before_the_title(text: str) -> str:
    """What stands above the card's title, front matter included."""
    return text.partition("# Korean Dolly rows")[0]


def test_no_derivatives_means_no_text() -> None:
    """Of a source that forbids handing on, neither the card nor convert.json holds a row's text."""
    summary = a_summary(a_source("closed", NO_DERIVATIVES))
    text = card(summary) + msgspec.json.encode(summary).decode()

    assert not any(field in text for field in (ROW.instruction, ROW.context, ROW.response))
    assert "No text is shown" in text


def test_text_handed_in_by_mistake_stays_out() -> None:
    """Even a sample that carries its text is not shown under a no-derivatives licence."""
    source = a_source("closed", NO_DERIVATIVES)
    source = msgspec.structs.replace(source, samples=(Sample.of(ROW, [FREE]),))

    assert ROW.response not in card(a_summary(source))


def test_free_samples_are_shown_and_cut() -> None:
    """A free source's sample is shown, a long field cut to 300 characters."""
    long = Row("물음", "", "가" * 400, "open_qa")
    source = msgspec.structs.replace(a_source("free", FREE), samples=(Sample.of(long, [FREE]),))
    text = card(a_summary(source))

    assert "가" * 300 + "…" in text
    assert "가" * 301 not in text


def test_terms_that_bind_stand_on_top() -> None:
    """Non-commercial and no-derivatives sources are named above the title, free ones are not."""
    sources = (
        a_source("free", FREE),
        a_source("nc", NON_COMMERCIAL),
        a_source("nd", NO_DERIVATIVES),
    )
    top = before_the_title(card(a_summary(*sources)))

    assert "not for commercial use" in top
    assert "NC (CC BY-NC 4.0): Never sell it." in top
    assert "do not hand these rows on" in top
    assert "ND (CC BY-ND 2.0 KR): Keep it." in top
    assert "FREE" not in top


def test_free_sources_need_no_warning() -> None:
    """A mix of free sources carries no warning."""
    assert "Warning" not in card(a_summary(a_source("free", FREE)))


def test_front_matter_is_the_hubs() -> None:
    """The hub's own reader finds language, licence, size and tasks."""
    hub = pytest.importorskip("huggingface_hub")
    one = hub.DatasetCard(card(a_summary(a_source("free", FREE)))).data.to_dict()
    mix = hub.DatasetCard(
        card(a_summary(a_source("free", FREE), a_source("nd", NO_DERIVATIVES)))
    ).data.to_dict()

    assert one["license"] == "mit"
    assert one["language"] == ["ko"]
    assert one["size_categories"] == ["n<1K"]
    assert one["task_categories"] == ["question-answering", "text-generation"]
    assert one["configs"][0]["data_files"] == [{"split": "train", "path": ["train.jsonl"]}]
    assert mix["license"] == "other"


def test_the_same_summary_gives_the_same_bytes(tmp_path: Path) -> None:
    """Card, pictures and convert.json written twice are the same, byte for byte."""
    summary = a_summary(a_source("free", FREE), a_source("nd", NO_DERIVATIVES))
    outputs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        names = draw(summary, tmp_path / name)
        (tmp_path / name / "dataset_card.md").write_bytes(card(summary, names).encode())
        write_summary(summary, tmp_path / name)
        files = sorted(file for file in (tmp_path / name).rglob("*") if file.is_file())
        outputs.append({f.relative_to(tmp_path / name): f.read_bytes() for f in files})

    assert outputs[0] == outputs[1]
    assert {"dataset_card.md", "lengths.png", "sources.png", "convert.json"} == {
        file.name for file in outputs[0]
    }
    assert (
        msgspec.json.decode((tmp_path / "one" / "convert.json").read_bytes(), type=Summary)
        == summary
    )


def test_no_path_of_the_machine() -> None:
    """The command is shown with the inputs' names, not with where they lay."""
    text = card(a_summary(a_source("free", FREE), prefix="/home/someone/data/"))

    assert "kodolly convert free.json --out OUT" in text
    assert "/home" not in text


def test_counts_that_add_up() -> None:
    """A whole conversion has nothing to say against it."""
    summary = a_summary(a_source("free", FREE), a_source("nd", NO_DERIVATIVES, rejected=0))

    assert summary.faults() == []
    assert "NO |" not in card(summary)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"units": 13}, "free.json: 13 units in, but 10 kept + 2 rejected"),
        ({"kept_units": 9}, "free.json: 12 units in, but 9 kept + 2 rejected"),
        ({"rows": 9}, "free: the counts of its files do not add up to the counts of the source"),
    ],
)
def test_a_lost_unit_is_placed(change: dict[str, int], message: str) -> None:
    """A file whose counts do not add up is named, and the card warns on top."""
    summary = a_summary(a_source("free", FREE))
    [one] = summary.inputs
    one = msgspec.structs.replace(one, counts=msgspec.structs.replace(one.counts, **change))
    summary = msgspec.structs.replace(summary, inputs=(one,))

    assert message in summary.faults()
    assert "the counts do not add up" in before_the_title(card(summary))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"splits": ()}, "10 rows kept, but 0 written"),
        ({"rejected_lines": 3}, "2 rejections, but 3 lines in rejected.jsonl"),
        ({"sources": ()}, "free: read, but not among the sources"),
    ],
)
def test_totals_are_checked_too(change: dict[str, object], message: str) -> None:
    """Rows written, lines of rejected.jsonl and the list of sources are held against the inputs."""
    summary = msgspec.structs.replace(a_summary(a_source("free", FREE)), **change)

    assert message in summary.faults()


def test_lengths_count_every_row() -> None:
    """A source with more rows than lengths is named."""
    source = a_source("free", FREE)
    source = msgspec.structs.replace(source, lengths={"response": Lengths.of(np.full(9, 3))})

    assert "free: 10 rows kept, but 9 lengths of response" in a_summary(source).faults()


@pytest.mark.parametrize("name", ["a|b", "a\\|b", "a`|`b", "a\n|b", "<b>|</b>"])
def test_pipes_do_not_break_tables(name: str) -> None:
    """A name with a pipe, or with what would undo its escape, stays one cell."""
    for cell in (text(name), code(name)):
        assert "|" not in cell
        assert "\n" not in cell
        assert table(["Name"], [[cell]]).count("|") == 6


def test_markdown_in_a_name_is_only_letters() -> None:
    """Stars, brackets and tags of a title are shown, not obeyed."""
    assert text("*a* [b](c) <i>&amp;") == r"\*a\* \[b\](c) &lt;i>&amp;amp;"


def test_numbers_stand_to_the_right() -> None:
    """Columns of numbers are set right with commas, columns of words left."""
    assert table(["A", "B"], [["x", 1234]]).splitlines()[1:] == ["| --- | ---: |", "| x | 1,234 |"]


def test_lengths_are_exact() -> None:
    """Mean, extremes and percentiles are those of the sorted lengths; each length has its bin."""
    lengths = Lengths.of(np.array([0] * 7 + list(range(1, 101))))

    assert (lengths.rows, lengths.empty) == (107, 7)
    assert (lengths.min, lengths.mean, lengths.max) == (1, 50.5, 100)
    assert (lengths.p50, lengths.p90, lengths.p99) == (50, 90, 99)
    assert sum(lengths.bins) == 100
    assert lengths.bins[EDGES.index(64)] == 91 - 64
    assert Lengths.of(np.array([2_000_000])).bins[-1] == 1


def test_the_command_names_what_differs() -> None:
    """Options at their defaults are left out of the command, all others are flags."""
    options = Options(
        rules={"nfc": "off"},
        near_threshold=0.7,
        provenance=True,
        tokenizer=Path("/models/a/tokenizer.json"),
    )
    words = command_line(options, ["-"], ["--source", "kovicuna"])

    assert " ".join(words) == (
        "kodolly convert - --out OUT --source kovicuna --rule nfc=off --tokenizer tokenizer.json "
        "--near-threshold 0.7 --provenance"
    )


def test_rules_say_what_they_did() -> None:
    """Each rule's row says what it did; rules that were off are listed as such."""
    text = card(a_summary(a_source("free", FREE)))

    assert re.search(r"\| `nfc` \| fixed \| 1,234,567 \| .+ \|", text)
    assert "Switched off: `near-duplicate`." in text


def test_the_last_lines_name_what_was_not_taken() -> None:
    """The card ends with sources, licences, rows, reasons and files, of which it names so many and counts the rest."""
    skipped = tuple(SkippedFile(name=f"{n}.png", why="is a picture") for n in range(LINES + 5))
    source = a_source("free", FREE, rejected=2)
    summary = msgspec.structs.replace(a_summary(source), skipped=skipped)
    last = card(summary).partition("## In short")[2]

    assert f"files read: 1 of {LINES + 6}; rows written: 10" in last
    assert "FREE (free): 10 of 12 questions kept in 10 rows; licence: MIT" in last
    assert "rejected as empty: 2 questions of free." in last
    assert last.count("is a picture") == LINES
    assert "not taken: 5 more files" in last


def test_unknown_terms_are_a_warning_and_show_no_text() -> None:
    """Rows without a known licence are said to be that, and none of their text is shown."""
    source = msgspec.structs.replace(
        a_source("own", UNKNOWN), samples=(Sample.of(ROW, [FREE, UNKNOWN]),)
    )
    text = card(a_summary(source))

    assert "the terms of some rows are unknown" in before_the_title(text)
    assert "| OWN | unknown | unknown | unknown |" in text
    assert ROW.response not in text
