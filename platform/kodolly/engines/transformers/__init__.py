"""The `transformers` engine: a small OpenAI server for machines without vLLM.

    python -m kodolly.engines.transformers --model DIR --served-model-name NAME --port P

One model, one thread that runs it, one event loop that talks HTTP. `model` runs a batch of rows
over a slot cache, `scheduler` decides which rows go next, `sampling` picks tokens, `detokenize`
turns them into text that is safe to send, `server` and `answers` speak OpenAI.
"""
