"""The OpenAI-compatible API: checks, routes and relays."""
