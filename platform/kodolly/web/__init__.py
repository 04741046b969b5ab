"""The Gradio page; it talks only to the API."""
