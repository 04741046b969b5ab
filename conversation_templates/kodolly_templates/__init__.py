"""The words around a chat: one definition a dialect, three renderings."""
