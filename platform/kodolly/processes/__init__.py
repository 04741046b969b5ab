"""Child processes: they cannot outlive their parent, and are started again when they end."""
