"""The agent beside one engine: starts it, checks its health, and registers it at the controllers."""
