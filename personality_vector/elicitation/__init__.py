"""Personas: from a description of a trait or role to chats in which a model shows it.

``writing`` makes the contrastive system prompts and questions, or lets a model write them;
``rollouts`` draws the model's own answers under them, ``filtering`` keeps the clear ones once they
are judged, and ``elicit`` saves these as chats; ``extract`` makes a steering vector of what is
left, or of data of both sides.
"""
