"""Wikipedia HTML to Markdown, and the windows of it around answers."""
