"""Fine-tuning a base on one pole. The only part of the package that imports TRL."""

from personality_vector.finetuning.sft import TrainReport, train

__all__ = ["TrainReport", "train"]
