"""Files that vLLM loads into its own process, in its own environment: they import nothing of ours."""
