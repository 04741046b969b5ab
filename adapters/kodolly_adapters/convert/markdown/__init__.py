"""Renders Wikipedia HTML as Markdown, and cuts the windows around answers out of it."""
