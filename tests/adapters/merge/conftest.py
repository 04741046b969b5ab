"""The bases that every merge test starts from, made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.merge_cases import make_base

SHARDS = {"neox": "200KB", "llama": "5GB"}  # one sharded, one in a single file


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Path]:
    """{(architecture, tied): model directory}."""
    root = tmp_path_factory.mktemp("bases")
    return {
        (arch, tied): make_base(
            root / f"{arch}-{'tied' if tied else 'untied'}", arch, tied=tied, shard=shard
        )
        for arch, shard in SHARDS.items()
        for tied in (False, True)
    }


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Tiny tensors on shared cores: more threads only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
