"""FastChat's own workers behind the API: their prompts, their frames, their errors."""
