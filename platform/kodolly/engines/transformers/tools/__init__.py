"""Tools that a model may call, in the form that Hermes and Qwen were taught: JSON between two tags.

`choice` reads the tools from a request and makes the grammar of a demanded call, `parser` reads calls
from the text of an answer.
"""
