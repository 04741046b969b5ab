"""How each kind of engine is started and asked.

An engine is an OpenAI-compatible HTTP server beside one worker. What it is started with is in
`command`, one module a kind: `vllm`, `transformers`, and `openai` for one that already runs.
How any of them is asked is in `client`. The worker agent owns the process; nothing here does.
"""
