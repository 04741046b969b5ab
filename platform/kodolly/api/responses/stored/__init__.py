"""Responses and conversations that are kept in the store."""
