"""The settings of a recipe in the words of TRL, transformers and PEFT."""

from pathlib import Path
from typing import Any

from personality_vector.errors import RecipeError
from personality_vector.finetuning.recipe import AdapterSpec, SftSpec, TrainRecipe
from personality_vector.subject.models import decoder_blocks, text_config


def arguments_of(recipe: TrainRecipe, scratch: Path, device: str, model: Any) -> Any:
    """Return the ``SFTConfig`` of a recipe with one pole.

    Args:
        recipe: The recipe.
        scratch: Where checkpoints are written.
        device: ``cpu``, or else the first GPU that the process sees.
        model: The model, for the class of its decoder blocks.
    """
    from trl import SFTConfig

    sft = recipe.sft
    arguments = SFTConfig(
        output_dir=str(scratch),
        num_train_epochs=sft.epochs,
        max_steps=sft.max_steps or -1,
        learning_rate=sft.learning_rate,
        per_device_train_batch_size=sft.batch_size,
        per_device_eval_batch_size=sft.batch_size,
        gradient_accumulation_steps=sft.gradient_accumulation,
        max_length=sft.max_length if sft.packing else None,  # the rows are cut already
        packing=sft.packing,
        packing_strategy="bfd",
        eval_packing=False,
        lr_scheduler_type=sft.scheduler,
        warmup_steps=sft.warmup_steps,
        weight_decay=sft.weight_decay,
        # Left unset, TRL turns on bfloat16 autocast, also on a CPU.
        bf16=sft.mixed_precision == "bfloat16",
        use_cpu=device == "cpu",
        seed=recipe.seed,
        data_seed=recipe.seed,
        logging_steps=1,
        # The default would replace a NaN loss by the running mean and continue.
        logging_nan_inf_filter=False,
        report_to=list(sft.report_to) or "none",
        disable_tqdm=True,
        trust_remote_code=False,
        **_rhythm(sft),
        **_spread(sft, model),
    )
    # One process trains on one GPU, also where it sees several, which TRL would refuse.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _spread(sft: SftSpec, model: Any) -> dict[str, Any]:
    """Return how a model is spread over processes, and whether activations are computed twice."""
    if not sft.fsdp:
        return {
            "gradient_checkpointing": sft.gradient_checkpointing,
            # Only the vision part of a model is not used by texts.
            "ddp_find_unused_parameters": text_config(model) is not model.config,
        }
    fsdp = {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": [type(decoder_blocks(model)[0]).__name__],
        "reshard_after_forward": True,
        "state_dict_type": "FULL_STATE_DICT",
        # The trainer's own would gather every block's weights once more.
        "activation_checkpointing": sft.gradient_checkpointing,
    }
    return {"gradient_checkpointing": False, "fsdp": True, "fsdp_config": fsdp}


def _rhythm(sft: SftSpec) -> dict[str, Any]:
    """Return when a trainer evaluates and writes checkpoints; two of these are kept."""
    evaluation = (
        {"eval_strategy": "steps", "eval_steps": sft.evaluate_every} if sft.evaluate_every else {}
    )
    if sft.patience is not None:
        return {
            **evaluation,
            "save_strategy": "steps",
            "save_steps": sft.evaluate_every,
            "save_total_limit": 2,
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
            "greater_is_better": False,
            "restore_callback_states_from_checkpoint": True,  # how long it has been patient
        }
    return {**evaluation, "save_strategy": "no", "save_total_limit": 2}  # `Checkpoints` asks


def adapter_of(recipe: TrainRecipe) -> Any:
    """Return PEFT's config of a recipe's adapter, or ``None`` if it trains every weight.

    Raises:
        RecipeError: PEFT refuses an option of the adapter.
    """
    if recipe.sft.adapter is not None:
        return _other_adapter(recipe.sft.adapter)
    if recipe.sft.lora is None:
        return None
    from peft import LoraConfig

    lora, targets = recipe.sft.lora, recipe.sft.lora.target_modules
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rank_stabilised,
        use_dora=lora.dora,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )


def _other_adapter(spec: AdapterSpec) -> Any:
    from peft import PeftType, get_peft_config

    kind = PeftType[spec.type.upper()]
    given = {"peft_type": kind, "task_type": "CAUSAL_LM", **spec.options}
    try:
        return get_peft_config(given)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"sft.adapter: PEFT refuses an option of {spec.type}: {error}") from error
