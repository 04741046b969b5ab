"""What most tests of the converter share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kodolly_adapters.convert.output import pictures


@pytest.fixture(scope="module")
def no_pictures() -> Iterator[None]:
    """Conversions draw nothing: pictures take a second each and have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "draw", lambda summary, folder: [])
        yield
