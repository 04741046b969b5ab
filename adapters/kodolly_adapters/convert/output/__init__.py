"""What a conversion writes: rows, counts, the data card."""
