"""Shapes that cross processes: FastChat's wire and OpenAI's wire."""
