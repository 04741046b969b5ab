"""KoDolly's running system: controller, worker, API and web page."""

__version__ = "0.2.0"  # the one place: pyproject.toml reads it from here
