"""Files and batches: many requests in one file, answered while the workers have nothing better to do."""
