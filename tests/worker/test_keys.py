"""Who may use a worker's engine."""

from pathlib import Path

from kodolly.settings import WorkerSettings
from kodolly.worker.app import Worker


def test_an_engine_of_ours_has_a_key_of_its_own(tmp_path: Path) -> None:
    """Made up at each start, so that nobody comes past the API; one attached to keeps its own."""
    keys = {Worker(WorkerSettings(model="m"), tmp_path).engine_key for _ in range(2)}
    assert len(keys) == 2
    assert all(key and len(key) >= 24 for key in keys)
    attached = WorkerSettings(engine="openai", engine_url="http://there:8000", engine_key="theirs")
    assert Worker(attached, tmp_path).engine_key == "theirs"
