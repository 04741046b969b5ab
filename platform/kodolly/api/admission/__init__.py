"""Who may run, who waits, who is refused."""
