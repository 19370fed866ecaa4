"""Fine-tuning a base on one pole. Only this room imports TRL."""
