"""Fine-tuning a base on one pole or on many. Only this room imports TRL."""
