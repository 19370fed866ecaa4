"""Control vectors of llama.cpp: a steering vector as one GGUF file."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from personality_vector.errors import DataError, OutputExistsError, RecipeError
from personality_vector.steering.fit import require_distinct
from personality_vector.steering.vector import SteeringVector

_ARCHITECTURE = "controlvector"


def export_gguf(
    vector: SteeringVector,
    out: str | Path,
    *,
    layers: Sequence[int] | None = None,
    coefficient: float = 1.0,
    model_hint: str = "",
    force: bool = False,
) -> Path:
    """Write ``coefficient * v_l`` as tensors ``direction.l``, float32, for ``--control-vector``.

    The index is the same: llama.cpp adds ``direction.l`` to the output of its 0-based block ``l``,
    at every position, prompt included, which is what positions ``all`` mean here. It has no place
    for block 0, and refuses a whole file that names it.

    Args:
        vector: To be scaled; its other layers are left out.
        out: The file; it appears whole or not at all.
        layers: 0-based decoder blocks, 1 or above; by default all of the vector. llama.cpp adds
            all of them at once, unless ``--control-vector-layer-range`` names some.
        coefficient: Not 0; llama.cpp multiplies by ``--control-vector-scaled`` again.
        model_hint: The architecture's name in llama.cpp, such as ``llama``; it is shown only.
        force: Replace a control vector.

    Raises:
        DataError: Layer 0 is to be exported, a layer is given twice or none is, or the
            coefficient is 0.
        TensorMismatchError: The vector has no such layer.
        NonFiniteError: The coefficient, or a product, is NaN or infinite.
        OutputExistsError: The file exists, and ``force`` is off or it is no control vector.
        RecipeError: The package ``gguf`` is not installed.

    Source:
        llama.cpp, ``common/common.cpp`` (``common_control_vector_load_one``) and
        ``src/llama-adapter.cpp`` ("there's never a tensor for layer 0"); the keys are those of
        its ``cvector-generator``.
    """
    gguf, path = _gguf(), Path(out)
    scaled = _scaled(vector, vector.layers if layers is None else layers, coefficient)
    _refuse_existing(gguf, path, force=force)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        _write(gguf, scaled, partial, model_hint)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _scaled(vector: SteeringVector, layers: Sequence[int], coefficient: float) -> SteeringVector:
    require_distinct(layers)
    if 0 in layers:
        raise DataError(
            f"{vector.label or 'the vector'}: llama.cpp cannot steer the output of block 0 (it has "
            "no control vector there, and refuses the file); name other layers"
        )
    if coefficient == 0:
        raise DataError("coefficient 0 steers nothing: there is nothing to export")
    return replace(vector, directions={layer: vector[layer] for layer in layers}) * coefficient


def _write(gguf: Any, vector: SteeringVector, file: Path, model_hint: str) -> None:
    writer = gguf.GGUFWriter(file, _ARCHITECTURE)
    try:
        writer.add_string(f"{_ARCHITECTURE}.model_hint", model_hint)
        writer.add_uint32(f"{_ARCHITECTURE}.layer_count", len(vector.layers))
        for layer in vector.layers:
            writer.add_tensor(f"direction.{layer}", vector[layer].contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _refuse_existing(gguf: Any, path: Path, *, force: bool) -> None:
    if not path.exists():
        return
    if not force:
        raise OutputExistsError(f"{path}: exists; choose another --out, or add --force")
    if not _is_control_vector(gguf, path):
        raise OutputExistsError(f"{path}: is no control vector, so it is never replaced")


def _is_control_vector(gguf: Any, path: Path) -> bool:
    try:
        field = gguf.GGUFReader(path).get_field("general.architecture")
    except (OSError, ValueError, KeyError):
        return False
    return field is not None and field.contents() == _ARCHITECTURE


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise RecipeError(
            "control vectors need the package gguf: pip install 'personality-vector[gguf]'"
        ) from error
    return gguf
