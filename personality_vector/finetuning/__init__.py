"""Fine-tuning a base on one pole. The only part of the package that imports TRL."""
