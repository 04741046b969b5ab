"""The `transformers` engine: a small OpenAI server for machines without vLLM.

    python -m kodolly.engines.transformers --model DIR --served-model-name NAME --port P

One thread runs the model, the event loop serves HTTP. `model` runs a batch of rows with a slot
`cache`, `scheduler` decides which rows run next, `sampling` chooses tokens, `structured` says which a
grammar allows, `detokenize` turns them into text, `tools` reads calls from it. `requests` checks what clients
send, `server`, `choices` and `answers` make OpenAI's responses.
"""
