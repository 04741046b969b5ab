"""How each engine process is started and asked."""
