"""Connections from clients: requests read within bounds, responses written in few steps."""
