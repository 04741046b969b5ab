"""A stream that outlives its worker: what was sent, what is owed, and how another goes on."""
