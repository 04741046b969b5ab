"""What a conversion leaves: rows, counts, the data card."""
