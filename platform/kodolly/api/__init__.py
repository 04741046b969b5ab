"""The OpenAI door: checks, routes and relays."""
