"""Personas: from a description of a trait or role to chats in which a model shows it.

``writing`` lets a model write the contrastive system prompts and questions; ``pipeline`` draws the
model's own answers under them, has them judged and keeps the clear pairs; ``extract`` makes a
steering vector of what is left, or of data of both sides.
"""
