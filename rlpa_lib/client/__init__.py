"""The client of OpenAI-compatible servers: cache, budget and usage record."""
