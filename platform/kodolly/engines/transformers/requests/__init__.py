"""The requests of the transformers engine. A bad value is a 400 that names the field.

A null means that a field is not given. What this engine cannot do is refused by the field's name, as
`kodolly.protocol.parameters` lists it; a field that nobody knows is ignored, as by vLLM.
"""
