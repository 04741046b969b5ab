"""From the arguments a person gave to typed records."""
