"""KoDolly's own engine for embeddings: a sentence-transformers directory, run by transformers on CPU or GPU.

`python -m kodolly.engines.embedder --model DIR --port P`, with the flags of the transformers engine.
"""
