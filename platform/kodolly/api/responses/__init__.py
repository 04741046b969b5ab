"""The OpenAI Responses API and Conversations, made of chats."""
