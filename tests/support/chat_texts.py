"""Texts for random conversations: words of templates, special tokens, Hangul in pieces, Jinja."""

from __future__ import annotations

import unicodedata

from hypothesis import strategies as st

from kodolly_templates import get_template, list_templates

DIALECTS = list_templates()
KEYS = sorted({key for name in DIALECTS for key in get_template(name).guard})
SPECIAL = ("<|endoftext|>", "<s>", "</s>", "<unk>", "<|im_end|>", "<|im_start|>")
FRAGMENTS = (
    *KEYS,
    *(unicodedata.normalize("NFD", key) for key in KEYS),
    *SPECIAL,
    *("###", "### ", "#", " ", "\n", "\n\n", "\r\n", "\t", "\u3000", "\u2060", "\u0301", "@GUARD@"),
    *("안녕하세요", "ㅋㅋㅋ ㅏ", "ᄒ", "ᅡ", "ᆫ", unicodedata.normalize("NFD", "각설탕")),
    *(
        "🙂",
        "👩‍👩‍👧‍👦",
        "{system_message}",
        "{{ x }}",
        "{% raw %}",
        '"',
        "\\n",
        "'",
        "%}",
        "### 맥락:\n",
    ),
)

texts = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=4), max_size=6).map("".join)
