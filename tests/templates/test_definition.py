"""What a dialect's file may hold, and how its faults are told."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kodolly_templates import TemplateError
from kodolly_templates.definition import parse_template

GOOD = """
name = "toy"
language = "ko"
introduction = ""
end = "\\n\\n### End"
stop = ["### End"]
[keys]
instruction = "### Ask:\\n"
context = "### Context:\\n"
response = "### Answer:\\n"
"""


def test_good_file_is_read() -> None:
    """Every field arrives, and the guard is made of the keys that make or end a turn."""
    template = parse_template(GOOD, "toy.toml")
    assert template.name == "toy"
    assert template.guard == ("### Ask:", "### Answer:", "### End")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[keys]", "[keys", "toy.toml: not TOML"),
        ('language = "ko"', "", "field 'language' is missing"),
        ('language = "ko"', "language = 1", "field 'language' must be a str"),
        ('language = "ko"', 'language = "ko"\nstopp = []', "unknown field 'stopp'"),
        ('["### End"]', '"### End"', "field 'stop' must be a list"),
        ('["### End"]', "[1]", "field 'stop' must hold texts"),
        ('["### End"]', '["bye"]', "no stop string is part of the end"),
        ('context = "### Context:\\n"', "", "must hold exactly instruction, context, response"),
        ("### Context:\\n", "### Context", "the keys must all end in"),
        ("### Context:\\n", "### Ask:\\n", "context key holds '### Ask:'"),
        ('introduction = ""', 'introduction = "hi "', "whitespace around it"),
        ('introduction = ""', 'introduction = "### End it"', "introduction or context key holds"),
        ("### Ask:\\n", "\\n:\\n", "under two characters"),
    ],
)
def test_faults_are_named(old: str, new: str, message: str) -> None:
    """A wrong file is refused with the file, the field and what is wrong."""
    assert old in GOOD
    with pytest.raises(TemplateError, match=r"toy\.toml|guard key") as caught:
        parse_template(GOOD.replace(old, new), "toy.toml")
    assert message in str(caught.value)


def test_import_is_cheap() -> None:
    """Importing the package and rendering a prompt loads neither fastchat nor jinja2."""
    code = (
        "import sys, kodolly_templates as k\n"
        "k.get_template('dolly-ko').prompt([{'role': 'user', 'content': 'x'}])\n"
        "heavy = {'fastchat', 'jinja2', 'transformers', 'tokenizers', 'torch'} & set(sys.modules)\n"
        "sys.exit(' '.join(heavy) or 0)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
