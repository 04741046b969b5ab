"""One file a step, named by its number; NEWEST in migrations/ is the last. A released one is never changed."""
