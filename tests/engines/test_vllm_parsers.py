"""Which of vLLM's parsers a model gets: by setting, by card, by family."""

from pathlib import Path

import pytest
from support.tool_models import TOOLS_TEMPLATE

from kodolly.engines.vllm_parsers import REGISTRIES, Parsers, choose, installed, parser_flags, table
from kodolly.errors import SettingsError

ROOT = Path(__file__).parents[2]
LLAMA = '{{ \'<|start_header_id|>\' }}{% if tools %}{"name": function name, "parameters": ...}{% endif %}'
R1 = "{% if tools %}{% endif %}{{ '<｜Assistant｜><think>\\n' }}"
FAMILIES = {
    "Hermes": ("llama", TOOLS_TEMPLATE, "hermes", None),
    "Qwen2.5": ("qwen2", TOOLS_TEMPLATE, "hermes", None),
    "Qwen3": ("qwen3", TOOLS_TEMPLATE + "{% if enable_thinking %}<think>", "hermes", "qwen3"),
    "Qwen3 Coder": ("qwen3_moe", TOOLS_TEMPLATE + "<function=", "qwen3_coder", None),
    "EXAONE 4": ("exaone4", TOOLS_TEMPLATE + "<think>", "hermes", "deepseek_r1"),
    "Llama 3.1": ("llama", LLAMA, "llama3_json", None),
    "Llama 4": ("llama4", LLAMA, "llama4_pythonic", None),
    "Mistral": ("mistral", "{{ tools }}[TOOL_CALLS]", "mistral", None),
    "gpt-oss": ("gpt_oss", "{{ tools }}", "openai", "openai_gptoss"),
    "GLM-4.5": ("glm4_moe", TOOLS_TEMPLATE + "<arg_key><think>", "glm45", "glm45"),
    "R1's distillation": ("qwen2", R1, None, "deepseek_r1"),
    "another": ("gpt_neox", "{{ tools }}", None, None),
}


def chosen(model_type: str | None, template: str | None, **named: str) -> Parsers:
    return choose(model_type, template, takes_tools="tools" in (template or ""), named=named)


@pytest.mark.parametrize(
    ("model_type", "template", "tool", "reasoning"), FAMILIES.values(), ids=FAMILIES
)
def test_a_family_has_its_parsers(
    model_type: str, template: str, tool: str | None, reasoning: str | None
) -> None:
    """The config's model_type and the marks in the chat template tell how a model writes its calls."""
    parsers = chosen(model_type, template)
    assert (parsers.tool, parsers.reasoning) == (tool, reasoning)


def test_a_template_without_tools_gets_no_tool_parser() -> None:
    """Whatever its marks: no prompt would hold the tools."""
    assert choose("llama", "<tool_call>", takes_tools=False, named={}).tool is None
    assert chosen("llama", None) == Parsers()


def test_a_named_parser_wins_and_none_is_none() -> None:
    """An operator's or a card's word is taken, also for a model that the table does not know."""
    assert chosen("gpt_neox", "{{ tools }}", tool="xlam").tool == "xlam"
    assert chosen("qwen2", TOOLS_TEMPLATE, tool="none").tool is None
    assert chosen("qwen3", TOOLS_TEMPLATE + "<think>", reasoning="none").reasoning is None


@pytest.fixture
def vllm(tmp_path: Path) -> str:
    """A stand-in for vLLM's folder, with three parsers."""
    for kind, names in {"tool": ("hermes", "xlam"), "reasoning": ("qwen3",)}.items():
        file, variable = REGISTRIES[kind]
        entries = ", ".join(f"{name!r}: ('file', 'Class')" for name in names)
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text(f"raise SystemExit\n{variable} = {{{entries}}}\n")
    return str(tmp_path)


def test_flags(vllm: str) -> None:
    """vLLM calls tools by itself only with both flags."""
    flags = parser_flags(Parsers("hermes", "qwen3"), vllm, ())
    assert flags == [
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        *("--reasoning-parser", "qwen3"),
    ]
    assert parser_flags(Parsers(), vllm, ()) == []


def test_engine_args_win(vllm: str) -> None:
    """What an operator gives vLLM directly is not given a second time."""
    extra = ("--enable-auto-tool-choice", "--tool_call_parser=xlam", "--reasoning-parser", "x")
    assert parser_flags(Parsers("hermes", "qwen3"), vllm, extra) == []


def test_a_parser_that_this_vllm_lacks(vllm: str, caplog: pytest.LogCaptureFixture) -> None:
    """One that was named is an error with the names there are; one of the table is left out, and said."""
    with pytest.raises(SettingsError, match=r"--tool-parser: .*'hermez'; it has hermes, xlam"):
        parser_flags(Parsers("hermez", chosen=frozenset({"tool"})), vllm, ())
    assert parser_flags(Parsers("mistral"), vllm, ()) == []
    assert "mistral" in caplog.text


def test_a_vllm_whose_parsers_cannot_be_read_is_believed(tmp_path: Path) -> None:
    """Another version may list them elsewhere: it says itself what it does not know."""
    assert "hermes" in parser_flags(Parsers("hermes"), str(tmp_path), ())


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_name_of_the_table_is_one_of_vllms(kind: str) -> None:
    """Compared with the source of the vLLM that is installed beside us, if there is one."""
    roots = list((ROOT / ".venv-vllm").glob("lib/python*/site-packages/vllm"))
    if not roots:
        pytest.skip("no .venv-vllm here: `make vllm-env` makes it")
    names = installed(kind, str(roots[0]))
    assert names
    assert {entry.parser for entry in table()[kind]} <= set(names)
