"""The Korean demonstration model: its rows, its recipes, and the command that makes it again."""

NAME = "kodolly-ko-8m"
