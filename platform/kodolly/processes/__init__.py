"""A child process that cannot outlive its parent, however the parent dies."""
