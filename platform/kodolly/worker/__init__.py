"""The agent beside one engine: starts it, registers it, beats for it, drains it."""
