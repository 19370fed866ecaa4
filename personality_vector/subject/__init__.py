"""A model that can be asked: loading, chats, prompt spans, generation, endpoints."""
