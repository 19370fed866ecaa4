"""Vectors on disk: tensors with a record and a manifest, or a control vector of llama.cpp."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from personality_vector.checkpoint import Checkpoint, read_header, read_json
from personality_vector.checkpoint.gguf_file import gguf_package
from personality_vector.errors import (
    CheckpointError,
    DataError,
    OutputExistsError,
    foreign,
    require_new,
)
from personality_vector.files import AtomicDirectory, write_file
from personality_vector.files.owned import text_digest
from personality_vector.manifest import WEIGHTS, write_manifest
from personality_vector.recipes.schema import PoleField
from personality_vector.steering.fit import resolved

if TYPE_CHECKING:
    from personality_vector.steering.vector import SteeringVector

# The architecture that llama.cpp writes into the GGUF file of a control vector.
_CONTROL_VECTOR = "controlvector"
_DIGEST = "personality_vector.digest"


class Record(BaseModel):
    """The content of ``NAME.json``: everything but the numbers.

    Attributes:
        stem: The ``NAME`` of the files.
        kind: Kind of the manifest; a subclass gives it and ``format`` as literals.
        made_with: What else the manifest says, key by key: ``template_options``, the rows
            ``dropped`` by reason, and the ``revision`` of a model of the Hub.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stem: ClassVar[str]
    kind: str
    format: int
    model: str
    pole: PoleField | None
    label: str
    counts: tuple[int, int]
    made_with: dict[str, Any] = Field(default={}, exclude_if=lambda value: not value)

    def write(self, directory: Path, tensors: Mapping[str, Tensor], *, force: bool) -> Path:
        """Write the three files; the directory appears whole or not at all.

        Raises:
            OutputExistsError: The directory exists, without ``force`` or not written by this tool.
        """
        stored = {name: tensor.contiguous() for name, tensor in tensors.items()}
        with AtomicDirectory(directory, kind=self.kind, force=force) as partial:
            save_file(stored, partial / f"{self.stem}.safetensors")
            (partial / f"{self.stem}.json").write_text(
                self.model_dump_json(indent=2) + "\n", encoding="utf-8"
            )
            tensors_written = Checkpoint(partial, read_header(partial / f"{self.stem}.safetensors"))
            content = self.model_dump(mode="json", exclude={"kind", "made_with"})
            content |= self.made_with
            content[WEIGHTS] = tensors_written.fingerprint.digest
            write_manifest(partial, self.kind, content)
        return directory

    @classmethod
    def read(cls, directory: Path) -> tuple[Any, Checkpoint]:
        """Return the record and the tensors.

        Raises:
            CheckpointError: A file is missing or damaged, or of another version of this package.
            VerificationError: The numbers are not those that were written.
        """
        file = directory / f"{cls.stem}.json"
        found = read_json(file)
        kind, newest = (cls.model_fields[name].default for name in ("kind", "format"))
        if found.get("kind") == kind and found.get("format") != newest:
            raise CheckpointError(
                f"{file}: is in format {found.get('format')!r}, but this version reads format "
                f"{newest}; extract the {cls.stem} again"
            )
        try:
            record = cls.model_validate(found)
        except ValidationError as error:
            raise CheckpointError(f"{file}: is not the record of kind {kind}: {error}") from error
        stored = Checkpoint(directory, read_header(directory / f"{cls.stem}.safetensors"))
        _ = stored.fingerprint  # which is compared with what was written
        return record, stored


class VectorRecord(Record):
    """The content of ``vector.json``: a steering vector with its norms instead of its numbers."""

    stem = "vector"
    kind: Literal["steering_vector"] = "steering_vector"
    format: Literal[2] = 2
    layer_convention: Literal[
        "0-based decoder block; the direction is added to the output of that block"
    ] = "0-based decoder block; the direction is added to the output of that block"
    pooling: str
    estimator: str
    template: str
    judge: str
    norms: dict[int, float]


def export_gguf(  # noqa: PLR0913  (a vector, what of it, how strong, for which model, and where)
    vector: "SteeringVector",
    out: str | Path,
    *,
    layers: Sequence[int] | None = None,
    coefficient: float = 1.0,
    blocks: int | None = None,
    model_hint: str = "",
    force: bool = False,
) -> Path:
    """Write ``coefficient * v_l`` as tensors ``direction.l``, float32, for ``--control-vector``.

    The index is the same: llama.cpp adds ``direction.l`` to the output of its 0-based block ``l``,
    at every position, prompt included, which is what positions ``all`` mean here. It has no place
    for block 0, and refuses a whole file that names it.

    Args:
        vector: The vector to scale and write; layers that are not named are left out.
        out: The file; it appears whole or not at all.
        layers: 0-based decoder blocks, 1 or above; by default all of the vector. llama.cpp adds
            all of them at once, unless ``--control-vector-layer-range`` names some.
        coefficient: Not 0; llama.cpp multiplies by ``--control-vector-scaled`` again.
        blocks: The number of decoder blocks of the model, to write zeros for all that are not
            steered. A running llama.cpp changes only blocks up to the last one in a file, so what
            an earlier and longer vector added to later blocks would stay.
        model_hint: The architecture's name in llama.cpp, such as ``llama``; it is shown only.
        force: Replace a control vector.

    Raises:
        DataError: Layer 0 is to be exported, a layer is given twice or none is, or the
            coefficient is 0.
        ModelError: A layer is not among the blocks.
        TensorMismatchError: The vector does not have one of these layers.
        NonFiniteError: The coefficient, or a product, is NaN or infinite.
        OutputExistsError: The file exists, and ``force`` is off or it is not a control vector.
        RecipeError: The package ``gguf`` is not installed.

    Source:
        llama.cpp, ``common/common.cpp`` (``common_control_vector_load_one``) and
        ``src/llama-adapter.cpp`` ("there's never a tensor for layer 0"); the keys are those of
        its ``cvector-generator``.
    """
    gguf = gguf_package("a control vector")
    path = Path(out)
    chosen = vector.layers if layers is None else layers
    resolved(chosen, blocks or max(chosen, default=0) + 1)
    if 0 in chosen:
        raise DataError(
            f"{vector.label or 'the vector'}: llama.cpp cannot steer the output of block 0 (it has "
            "no control vector there, and refuses the file); name other layers"
        )
    if coefficient == 0:
        raise DataError("coefficient 0 steers nothing: there is nothing to export")
    scaled = coefficient * vector.at(*chosen)
    _refuse_existing(gguf, path, force=force)
    steered = {layer: scaled[layer].contiguous() for layer in scaled.layers}
    zeros = dict.fromkeys(range(1, blocks or 0), next(iter(steered.values())) * 0)
    directions = {layer: one.numpy() for layer, one in sorted({**zeros, **steered}.items())}
    write_file(path, lambda partial: _write(gguf, directions, partial, model_hint))
    return path


def _write(gguf: Any, directions: Mapping[int, Any], file: Path, model_hint: str) -> None:
    with closing(gguf.GGUFWriter(file, _CONTROL_VECTOR)) as writer:
        writer.add_string(f"{_CONTROL_VECTOR}.model_hint", model_hint)
        writer.add_uint32(f"{_CONTROL_VECTOR}.layer_count", len(directions))
        writer.add_string(_DIGEST, _digest_of(directions))
        for layer, numbers in directions.items():
            writer.add_tensor(f"direction.{layer}", numbers)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def _refuse_existing(gguf: Any, path: Path, *, force: bool) -> None:
    require_new(path, force=force)
    if not path.exists():
        return
    what = f"{path}: is not a control vector as this tool wrote it, so it is never replaced"
    with foreign(OutputExistsError, what):
        reader = gguf.GGUFReader(path)
        found = {int(one.name.rpartition(".")[2]): one.data for one in reader.tensors}
        if reader.get_field(_DIGEST).contents() != _digest_of(found):
            raise ValueError("its tensors are others")


def _digest_of(directions: Mapping[int, Any]) -> str:
    """Return a digest of the numbers of a control vector."""
    return text_digest(str({n: directions[n].tobytes().hex() for n in sorted(directions)}))
