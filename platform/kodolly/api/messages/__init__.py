"""Anthropic's Messages API: requests become chats, and what a chat answers becomes messages."""
