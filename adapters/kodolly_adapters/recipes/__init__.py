"""The built-in recipes, in TOML: one for each model of the study's table, and small ones that run on a CPU."""
