"""Messages between processes: FastChat's protocol and OpenAI's API."""
