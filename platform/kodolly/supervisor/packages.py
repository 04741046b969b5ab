"""Which optional packages `kodolly up` needs, asked before any process is started."""

from __future__ import annotations

from pathlib import Path

from kodolly.engines import vllm
from kodolly.extras import require
from kodolly.options import resolve
from kodolly.settings import SECTIONS, UpSettings, WorkerSettings


def check_packages(settings: UpSettings, config: Path | None) -> None:
    """Raise KodollyError, with the command that helps, where engine or page could not be started.

    The workers would say it too, but only in their logs, again and again. `config` is the settings file.
    """
    python = settings.engine_python or _workers_own_python(config)
    needs = ["web"] if settings.web else []
    if settings.engine == "transformers" and python is None:
        needs.append("transformers")
    require(*needs)
    if settings.engine == "vllm":
        vllm.probe(vllm.find_interpreter(python))


def _workers_own_python(config: Path | None) -> str | None:
    """The engine's interpreter that the file or the environment names for `kodolly worker` alone."""
    flags = [] if config is None else ["--config", str(config)]
    return resolve(
        WorkerSettings, flags, prog="kodolly worker", sections=SECTIONS
    ).settings.engine_python
