"""Personas: from a description of a trait or role to chats in which a model shows it.

``writing`` lets a model write the contrastive system prompts and questions; ``rollouts`` draws the
model's own answers under them and keeps the clear pairs, once they are judged;
``extract`` makes a steering vector of what is left, or of data of both sides.
"""
