"""The words around a chat: one definition a dialect, three renderings.

Importing this is cheap: fastchat and jinja2 are loaded by the rendering that needs them.
"""

from .catalogue import get_template, list_templates, load, register_all
from .definition import Template
from .directory import special_tokens_of
from .errors import TemplateError
from .guard import neutralise
from .messages import Message
from .tokenizer import TokenizerTemplate
from .training import TrainingText

__all__ = [
    "Message",
    "Template",
    "TemplateError",
    "TokenizerTemplate",
    "TrainingText",
    "get_template",
    "list_templates",
    "load",
    "neutralise",
    "register_all",
    "special_tokens_of",
]
