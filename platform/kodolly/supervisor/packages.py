"""Which optional packages `kodolly up` needs, asked before any process is started."""

from __future__ import annotations

from pathlib import Path

from kodolly.engines import vllm
from kodolly.extras import require
from kodolly.options import resolve
from kodolly.settings import SECTIONS, UpSettings, WorkerSettings


def check_extras(settings: UpSettings, config: Path | None) -> None:
    """Raise KodollyError, with the command that helps, where page or engine lack their packages.

    The processes would say it too, but only in their logs, again and again. `config` is the settings file.
    """
    needs = ["web"] if settings.web else []
    if settings.engine == "transformers" and _engine_python(settings, config) is None:
        needs.append("transformers")
    require(*needs)


def check_vllm(settings: UpSettings, config: Path | None) -> None:
    """Raise SettingsError where vLLM is to make the tokens and the interpreter named for it has none."""
    if settings.engine == "vllm":
        vllm.probe(vllm.find_interpreter(_engine_python(settings, config)))


def _engine_python(settings: UpSettings, config: Path | None) -> str | None:
    """The engine's interpreter: that of `up`, else what file or environment name for `kodolly worker`."""
    if settings.engine_python is not None:
        return settings.engine_python
    flags = [] if config is None else ["--config", str(config)]
    worker = resolve(WorkerSettings, flags, prog="kodolly worker", sections=SECTIONS).settings
    return worker.engine_python
