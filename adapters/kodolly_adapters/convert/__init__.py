"""Public Korean sets to Dolly rows: `kodolly convert`."""
