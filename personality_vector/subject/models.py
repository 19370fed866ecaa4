"""Models in memory: loading them, and finding the stack of decoder blocks."""

import contextlib
import io
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from personality_vector.checkpoint import (
    FLOATS,
    Checkpoint,
    canonical,
    canonical_names,
    is_buffer,
    read_json,
)
from personality_vector.errors import CheckpointError, ModelError, foreign, heard, some
from personality_vector.subject.config import read_config, require_bounded
from personality_vector.subject.encoding import most_tokens
from personality_vector.subject.spec import Template
from personality_vector.subject.templates import set_template

log = logging.getLogger(__name__)


def load_model(path: str | Path, *, dtype: str = "float32", device: str = "cpu") -> Any:
    """Return the language model of a checkpoint directory, in evaluation mode.

    A vision-language model is loaded whole; it also reads text without images.

    Args:
        path: A Hugging Face checkpoint directory with safetensors.
        dtype: ``float32``, ``bfloat16`` or ``float16``. Explicit, because transformers 5 would
            otherwise follow the file, and bfloat16 swallows small edits.
        device: A torch device.

    Raises:
        CheckpointError: The files cannot be read.
        ModelError: transformers cannot build the model, or the files do not match its tensors.
        TensorMismatchError: Two tensors on disk are one in memory.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    checkpoint = Checkpoint.open(path)
    path, entries = checkpoint.path, checkpoint.entries
    config = read_config(path, "load this model")
    kind = _class_of(path, config)
    _require_same_shapes(checkpoint, kind, config)
    with foreign(ModelError, f"{path}: transformers cannot load this model"), heard():
        model, report = kind.from_pretrained(
            str(path),
            dtype=FLOATS[dtype],
            output_loading_info=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    unexpected = [
        name
        for name in report["unexpected_keys"]
        if not (name in entries and is_buffer(entries[name]))  # old files hold masks and tables
    ]
    absent = sorted(report["missing_keys"]) + sorted(unexpected)
    if absent:
        raise ModelError(
            f"{path}: config.json and the weights disagree on {len(absent)} tensors "
            f"(e.g. {absent[0]}); the model would be partly random"
        )
    return model.to(device).eval()


def _class_of(path: Path, config: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto import modeling_auto

    vision = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    only_vision = set(vision) - set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    kind, text = config.model_type, config.get_text_config()
    if not _is_embedded(
        getattr(text, "pad_token_id", None) or 0, getattr(text, "vocab_size", None)
    ):
        raise ModelError(
            f"{path}: config.json: pad_token_id is {text.pad_token_id}, but the model knows tokens "
            f"0 to {text.vocab_size - 1}; write null, and another token is chosen"
        )
    return AutoModelForImageTextToText if kind in only_vision else AutoModelForCausalLM


def load_tokenizer(path: str | Path, template: Template | None = None) -> Any:
    """Return the tokenizer of a checkpoint directory, with a padding token and left padding.

    Its ``chosen`` notes what was missing, for manifests: a token for padding or for the end of a
    text, and the date that the template is told. ``most_tokens`` is how many the model reads.

    Args:
        path: The folder.
        template: A chat template and its options, in place of the tokenizer's own.

    Raises:
        CheckpointError: The tokenizer cannot be read.
        DataError: The chat template does not read an option.
    """
    from transformers import AutoTokenizer

    if Path(path).is_dir():
        require_bounded(Path(path))
    with (
        foreign(CheckpointError, f"{path}: the tokenizer cannot be read"),
        contextlib.redirect_stderr(io.StringIO()),
        heard(),
    ):
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
            # An attribute of a wrong type is not seen before it is used.
            tokenizer.decode(tokenizer("one")["input_ids"], skip_special_tokens=True)
        except ValueError as error:
            if "trust_remote_code" not in str(error):
                raise
            raise CheckpointError(
                f"{path}: its tokenizer needs code of its own, which is never run"
            ) from error
    tokenizer.padding_side = "left"
    tokenizer.chosen = _with_marks(tokenizer, Path(path))
    config = Path(path, "config.json")
    tokenizer.most_tokens = most_tokens(read_json(config)) if config.is_file() else None
    beside = Path(path) / "chat_template.json"  # of the processor of an older vision model
    if tokenizer.chat_template is None and beside.is_file():
        tokenizer.chat_template = read_json(beside).get("chat_template")
    tokenizer.chosen |= set_template(tokenizer, template or Template(), str(path))
    return tokenizer


def chosen_for(path: str | Path, template: Template) -> dict[str, Any]:
    """Return ``{"tokenizer": ...}`` with what :func:`load_tokenizer` chose, if anything."""
    chosen = load_tokenizer(path, template).chosen
    return {"tokenizer": chosen} if chosen else {}


def _with_marks(tokenizer: Any, path: Path) -> dict[str, str]:
    """Choose tokens for the end of a text and for padding where there are none; return them.

    The end is what the model's configuration names. Padding is never read, so any token will do:
    the end, else what the configuration names, else the unknown token. One that was added to
    the tokenizer alone has no embedding, so another takes its place.
    """
    had = tokenizer.eos_token_id is not None
    rows = _named_in(path, "config.json", "vocab_size")
    chosen = {}
    if not had and (end := _token_of(tokenizer, path, "eos_token_id")):
        tokenizer.eos_token = chosen["eos_token"] = end
    if not _is_embedded(tokenizer.pad_token_id, rows):
        named = None if had else _token_of(tokenizer, path, "pad_token_id")
        found = (named, tokenizer.eos_token, tokenizer.unk_token)
        ids = {token: tokenizer.convert_tokens_to_ids(token) for token in found if token}
        padding = next((token for token, one in ids.items() if _is_embedded(one, rows)), None)
        if padding:
            tokenizer.pad_token = chosen["pad_token"] = padding
    return chosen


def _is_embedded(token: int | None, rows: object) -> bool:
    return token is not None and (not isinstance(rows, int) or token < rows)


def _token_of(tokenizer: Any, path: Path, key: str) -> str | None:
    """Return the token that the configuration of a model names, if it names one."""
    for name in ("generation_config.json", "config.json"):
        found = _named_in(path, name, key)
        first = found[0] if isinstance(found, list) and found else found
        if isinstance(first, int) and 0 <= first < len(tokenizer):
            token = tokenizer.convert_ids_to_tokens(first)
            return str(token) if token else None
    return None


def _named_in(path: Path, name: str, key: str) -> Any:
    """Return the value of a key of a model or of its language part, if a file has it."""
    config = read_json(path / name) if (path / name).is_file() else {}
    part = config.get("text_config")
    return config.get(key, part.get(key) if isinstance(part, dict) else None)


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """Return the stack of decoder blocks; block ``layer`` is the 0-based layer of this package.

    It is what ``decoder_blocks`` in config.json names, such as ``transformer.h``; else the list of
    ``num_hidden_layers`` modules, in a vision-language model that of the text part.

    Raises:
        ModelError: The model does not have this list.
    """
    if not hasattr(model, "config"):
        raise ModelError(f"{type(model).__name__} has no config; give a model of transformers")
    named = getattr(model.config, "decoder_blocks", None)
    if named is not None:
        return _named_blocks(model, named)
    layers = getattr(text_config(model), "num_hidden_layers", None)
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == layers]
    if not stacks:
        raise ModelError(
            f"{type(model).__name__} has no nn.ModuleList of {layers} decoder blocks "
            "(config.num_hidden_layers); name the list in config.json, "
            'such as "decoder_blocks": "transformer.h"'
        )
    # A vision tower can be as deep as the language model: the text stack is the one in the decoder.
    inside = [stack for stack in stacks if any(stack is m for m in decoder_of(model).modules())]
    return (inside or stacks)[0]


def decoder_of(model: Any) -> Any:
    """Return the model without its output layer, where it has such a part."""
    return model.get_decoder() if hasattr(model, "get_decoder") else model


def owner_of(model: nn.Module, blocks: nn.ModuleList) -> nn.Module:
    """Return the module that holds the stack of blocks and runs it."""
    return next(m for m in model.modules() if any(child is blocks for child in m.children()))


def _named_blocks(model: nn.Module, name: str) -> nn.ModuleList:
    found = dict(model.named_modules()).get(name)
    if not isinstance(found, nn.ModuleList) or not len(found):
        lists = [path for path, m in model.named_modules() if isinstance(m, nn.ModuleList)]
        raise ModelError(
            f"config.json names decoder_blocks {name!r}, which is not an nn.ModuleList of this "
            f"{type(model).__name__}; its lists are {some(lists, 6) or 'none'}"
        )
    return found


def text_config(model: nn.Module) -> Any:
    """Return the configuration of the language part of ``model``."""
    config: Any = model.config
    return config.get_text_config()


def hidden_size(model: nn.Module) -> int:
    """Return the width of the residual stream."""
    return int(text_config(model).hidden_size)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the first parameter."""
    return next(model.parameters()).device


def resolve_device(name: str) -> str:
    """Return ``name``, where ``auto`` is ``cuda`` if there is one and else ``cpu``.

    Raises:
        ModelError: The device is not available.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"device {name}: this torch sees no CUDA device; use auto or cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ModelError("device mps: this torch sees no MPS device; use auto or cpu")
    return name


class _WithoutCopies(TorchFunctionMode):
    """Lets an operation that would copy a tensor, to make it contiguous, return the tensor."""

    def __torch_function__(
        self, function: Any, types: Any, given: Any = (), options: Any = None
    ) -> Any:
        if function in (Tensor.contiguous, Tensor.clone):
            return given[0]
        return function(*given, **(options or {}))


@torch.no_grad()
def parameters_on_disk(model: nn.Module) -> tuple[Mapping[str, Tensor], set[str]]:
    """Return the parameters by name in memory and by name on disk, tied ones under every name.

    transformers 5 renames and fuses while it loads: GPT-NeoX has ``embed_out`` on disk and
    ``lm_head`` in memory, and the experts of a layer are one parameter. What is part of a parameter
    is a view of it.

    Returns:
        The parameters, and the names of tensors on disk that are no part of one parameter.
    """
    from transformers.core_model_loading import revert_weight_conversion

    live: dict[str, Any] = dict(model.named_parameters(remove_duplicate=False))
    memory = {tensor.untyped_storage().data_ptr() for tensor in live.values()}
    with _WithoutCopies():
        on_disk = revert_weight_conversion(model, {n: one.detach() for n, one in live.items()})
    views = {
        name: tensor
        for name, tensor in on_disk.items()
        if tensor.untyped_storage().data_ptr() in memory
    }
    return {**live, **views}, on_disk.keys() - views.keys()


def names_on_disk(checkpoint: Checkpoint) -> dict[str, str]:
    """Return ``{name in memory: name on disk}`` of the parameters that are one tensor in both.

    Raises:
        ModelError: transformers cannot build the model, or has no way back from it to the disk.
    """
    path = checkpoint.path
    config = read_config(path, "build this model")
    model = _outline(checkpoint, _class_of(path, config), config)
    what = f"{path}: transformers cannot tell how this model is written"
    with foreign(ModelError, what), heard():
        return {name: on_disk for name, on_disk, _ in _whole(model)}


def _require_same_shapes(checkpoint: Checkpoint, kind: Any, config: Any) -> None:
    """Refuse weights of other shapes than config.json says, before memory for these is taken.

    Only parameters that are one tensor on disk are compared, and a file may hold one transposed.
    transformers itself compares what it splits, joins or cannot name as on disk.

    Raises:
        ModelError: A shape differs, or transformers cannot build the model.
        TensorMismatchError: Two tensors on disk are one in memory.
    """
    ours, model = canonical_names(checkpoint), _outline(checkpoint, kind, config)
    try:
        with heard():
            whole = _whole(model)
    except Exception:  # noqa: BLE001  (an operation of transformers that has no way back)
        return
    for _, name, shape in whole:
        found = checkpoint.entries.get(ours.get(canonical(name), ""))
        if found is not None and sorted(found.shape) != sorted(shape):
            raise ModelError(
                f"{checkpoint.path}: config.json and the weights disagree: {found.name} has the "
                f"shape {list(found.shape)}, and config.json makes it {list(shape)}"
            )


def _whole(model: nn.Module) -> list[tuple[str, str, torch.Size]]:
    """Return the parameters that are one tensor on disk: name, name on disk, shape in memory."""
    from transformers.core_model_loading import revert_weight_conversion

    live = dict(model.named_parameters(remove_duplicate=False))
    names = {id(tensor): name for name, tensor in live.items()}
    return [
        (names[id(tensor)], on_disk, tensor.shape)
        for on_disk, tensor in revert_weight_conversion(model, live).items()
        if id(tensor) in names
    ]


def _outline(checkpoint: Checkpoint, kind: Any, config: Any) -> Any:
    """Return the model of a class that a configuration describes, without data.

    Raises:
        ModelError: transformers cannot build the model, or it is much larger than the weights.
    """
    what = f"{checkpoint.path}: transformers cannot build this model"
    with foreign(ModelError, what), heard(), torch.device("meta"), _bounded_by(checkpoint):
        return kind.from_config(config, trust_remote_code=False)


@contextlib.contextmanager
def _bounded_by(checkpoint: Checkpoint) -> Iterator[None]:
    """Stop the building of a model of many more, or many larger, tensors than a checkpoint has."""
    held = sum(math.prod(entry.shape) for entry in checkpoint.entries.values())
    most, values = 4 * len(checkpoint.entries) + 100, 4 * held + 2**26
    made = [0, 0]

    def count(_: nn.Module, __: str, tensor: Tensor | None) -> None:
        made[0] += 1
        made[1] += 0 if tensor is None else tensor.numel()
        if made[0] > most or made[1] > values:
            raise ModelError(
                f"{checkpoint.path}: config.json and the weights disagree: the files hold "
                f"{len(checkpoint.entries):,} tensors of {held:.4g} values in all, and config.json "
                f"makes a model of more than {made[0]:,} tensors and {made[1]:.4g} values"
            )

    hooks = [
        nn.modules.module.register_module_parameter_registration_hook(count),
        nn.modules.module.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
