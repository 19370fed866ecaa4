"""Personas: from a description of a trait or role to chats in which a model shows it.

``write_persona`` lets a model write the contrastive system prompts and questions; ``elicit`` draws
the model's own answers under them, has them judged and keeps the clear pairs; ``extract_persona``
makes a steering vector of what is left.
"""
