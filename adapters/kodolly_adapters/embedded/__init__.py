"""The embedded model: a small real LLaMA turned into a model directory."""
