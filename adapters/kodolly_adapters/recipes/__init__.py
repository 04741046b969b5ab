"""Recipes as TOML, one file a row of the study's table, and smaller ones that run on a CPU."""
