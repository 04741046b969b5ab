"""KoDolly's running system: controller, worker, API and web page."""

__version__ = "0.1.0"
