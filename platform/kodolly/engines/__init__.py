"""The engines: how each kind is started, and how any of them is called.

An engine is an OpenAI-compatible HTTP server that makes the tokens of one worker. `command` holds the
options that all kinds share; `vllm` and `transformers` are kinds that we start, `openai` is a server
that runs already. `client` calls an engine. The worker agent starts and stops the processes.
"""
