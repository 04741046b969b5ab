"""No engine is asked to go on from half a character: it may write it wrong, or not at all."""

import pytest
from support.script import KOREAN_TOKENS, Script

from .conftest import Stack
from .test_resume import events, pair, prefer, said


@pytest.mark.parametrize("kind", ["chat", "completion"])
async def test_a_continuation_begins_at_a_character(stack: Stack, kind: str) -> None:
    """Wherever the stream was cut, what the next engine gets to read is whole text."""
    bad, well = await pair(stack)
    script = Script()
    inside = [n for n in range(1, len(KOREAN_TOKENS)) if "\ufffd" in script.decode(ids(n))]
    assert len(inside) == 2
    for cut in (*inside, inside[0] - 1, inside[-1] + 1):
        bad.script.die_after = cut
        prefer(stack, bad, well)
        assert said(await events(stack, kind)) == script.text
        prompt = well.requests[-1].body["prompt"]
        assert "\ufffd" not in script.decode(prompt), cut
        begun = script.resume_point(prompt)
        assert begun == (cut - 1 if cut in inside else cut)


def ids(count: int) -> list[int]:
    """The first tokens of the scripted answer."""
    return [step.token_id for step in Script().answer(count).steps]
