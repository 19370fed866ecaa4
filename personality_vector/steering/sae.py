"""Features of a sparse autoencoder that a steering vector points along: cosines with its decoder.

The dictionary may be larger than memory; it is read part by part.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from personality_vector.checkpoint import Checkpoint, read_header, read_json
from personality_vector.errors import (
    CheckpointError,
    NonFiniteError,
    TensorMismatchError,
    some,
)
from personality_vector.progress import progress
from personality_vector.steering.vector import SteeringVector

_FILE, _CONFIG = "sae_weights.safetensors", "cfg.json"
_DECODERS = {"W_dec": True, "decoder.weight": False}
"""Name of a decoder to whether its rows are the features; otherwise its columns are."""

_RESIDUAL = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")
_PART = 1 << 22
"""Entries that are read at once."""


class Feature(NamedTuple):
    """A feature, the cosine of its direction with a steering vector, and its decoder's norm."""

    number: int
    cosine: float
    norm: float


@dataclass(frozen=True, eq=False)
class Dictionary:
    """The decoder of a sparse autoencoder, on disk.

    Attributes:
        file: The safetensors file, such as ``sae_weights.safetensors`` of SAELens.
        decoder: Name of the decoder: ``W_dec``, a row for each feature, or ``decoder.weight``, a
            column for each.
    """

    file: Path
    decoder: str

    @classmethod
    def open(cls, where: str | Path) -> "Dictionary":
        """Open a file, or the folder of SAELens that holds it; nothing is read but its header.

        Raises:
            CheckpointError: It is missing or damaged, or has no decoder.
        """
        file = Path(where) / _FILE if Path(where).is_dir() else Path(where)
        entries = read_header(file)
        for name in _DECODERS:
            if name in entries:
                shape, dtype = entries[name].shape, entries[name].dtype
                if len(shape) != 2 or not min(shape) or not dtype.is_floating_point:
                    raise CheckpointError(
                        f"{file}: {name} should be a matrix of real numbers, but is {dtype} of "
                        f"shape {list(shape)}"
                    )
                return cls(file, name)
        raise CheckpointError(
            f"{file}: has neither {' nor '.join(_DECODERS)}, so it is no sparse autoencoder that "
            f"can be read; it has {some(entries) or 'no tensor'}"
        )

    @property
    def features(self) -> int:
        """Number of features."""
        return self._shape[0 if self._by_row else 1]

    @property
    def hidden(self) -> int:
        """Width of what it decodes to."""
        return self._shape[1 if self._by_row else 0]

    @cached_property
    def layer(self) -> int | None:
        """The 0-based decoder block whose output it was trained on, if ``cfg.json`` says so.

        What enters block ``l`` is the output of block ``l - 1``.

        Raises:
            CheckpointError: ``cfg.json`` is damaged.
        """
        hook = _RESIDUAL.fullmatch(self.hook)
        layer = int(hook[1]) - (hook[2] == "pre") if hook else -1
        return layer if layer >= 0 else None

    @cached_property
    def hook(self) -> str:
        """What it was trained on, such as ``blocks.3.hook_resid_post``; "" where nothing says so.

        Raises:
            CheckpointError: ``cfg.json`` is damaged.
        """
        config = self.file.with_name(_CONFIG)
        if not config.is_file():
            return ""
        found = read_json(config)
        within = found.get("metadata")
        named = found.get("hook_name") or (within if isinstance(within, dict) else {}).get(
            "hook_name"
        )
        return "" if named is None else str(named)

    def require_width(self, direction: Float[Tensor, " hidden"]) -> None:
        """Check that it decodes to vectors of the width of one.

        Raises:
            TensorMismatchError: It has another width.
        """
        if self.hidden != direction.numel():
            raise TensorMismatchError(
                f"{self.file}: decodes to {self.hidden} numbers, but the vector has "
                f"{direction.numel()}; take an autoencoder of the same model"
            )

    def nearest(self, direction: Float[Tensor, " hidden"], top: int) -> list[Feature]:
        """Return the features with the largest magnitude of the cosine, largest first.

        ``cos_f = v . d_f / (|v| |d_f|)`` with ``d_f`` the direction that feature ``f`` decodes to;
        float64, over every feature. Of equal ones the first comes first. A feature of norm 0 has
        no direction and is left out.

        Args:
            direction: The vector ``v``.
            top: How many; fewer if there are no more.

        Raises:
            TensorMismatchError: The decoder has another width.
            NonFiniteError: A feature has NaN or infinity.

        Source:
            Persona vectors, Chen et al. 2025, arXiv:2507.21509, appendix on decomposing persona
            vectors with sparse autoencoders.
        """
        self.require_width(direction)
        unit = direction.double() / direction.double().norm()
        dots, squares = (torch.zeros(self.features, dtype=torch.float64) for _ in range(2))
        for part, block in self._blocks("compare features"):
            if self._by_row:
                dots[part], squares[part] = block @ unit, block.square().sum(1)
            else:
                dots += unit[part] @ block
                squares += block.square().sum(0)
        broken = (~squares.isfinite()).nonzero()
        if len(broken):
            raise NonFiniteError(
                f"{self.file}: {len(broken)} features of {self.decoder} hold NaN or infinity, the "
                f"first is {int(broken[0])}; download it again"
            )
        norms = squares.sqrt()
        cosines = torch.where(
            norms > 0, dots / norms.clamp(min=torch.finfo(torch.float64).tiny), 0.0
        )
        order = torch.sort(
            torch.where(norms > 0, cosines.abs(), -1.0), descending=True, stable=True
        )
        chosen = order.indices[: min(top, int((norms > 0).sum()))].tolist()
        return [Feature(n, float(cosines[n].clamp(-1, 1)), float(norms[n])) for n in chosen]

    def directions(self, numbers: Sequence[int]) -> Float[Tensor, "features hidden"]:
        """Return what some features decode to, float32."""
        if self._by_row:
            parts = [slice(n * self.hidden, (n + 1) * self.hidden) for n in numbers]
            rows = [self._stored.part(self.decoder, part) for part in parts]
            return torch.stack(rows).float()
        columns = [block[:, numbers] for _, block in self._blocks("read features")]
        return torch.cat(columns).T.float().contiguous()

    def _blocks(self, doing: str) -> Iterator[tuple[slice, Tensor]]:
        """Yield runs of rows of the decoder as it is stored, float64."""
        rows, columns = self._shape
        run = max(1, _PART // columns)
        for start in progress(range(0, rows, run), doing):
            part = slice(start, min(start + run, rows))
            entries = slice(part.start * columns, part.stop * columns)
            yield part, self._stored.part(self.decoder, entries).double().reshape(-1, columns)

    @cached_property
    def _stored(self) -> Checkpoint:
        return Checkpoint(self.file.parent, read_header(self.file))

    @property
    def _shape(self) -> tuple[int, ...]:
        return self._stored.entries[self.decoder].shape

    @property
    def _by_row(self) -> bool:
        return _DECODERS[self.decoder]


def as_vectors(
    dictionary: Dictionary, found: Sequence[Feature], vector: SteeringVector, layer: int
) -> list[SteeringVector]:
    """Return features as steering vectors at a layer, each as long as ``vector`` is there.

    Equal coefficients are then equal lengths. The sign is the feature's own: a positive coefficient
    adds the feature, also where its cosine with the vector is negative.
    """
    rows = dictionary.directions([feature.number for feature in found]).double()
    length = vector.norm(layer)
    return [
        replace(
            vector,
            directions={layer: (length / row.norm() * row).float()},
            pole=None,
            label=f"feature {feature.number}",
            pooling="",
            counts=(0, 0),
            estimator="sae_decoder",
            judge="",
            made_with={
                "dictionary": dictionary.file.name,
                "feature": feature.number,
                "cosine": feature.cosine,
                "norm": feature.norm,
            },
        )
        for feature, row in zip(found, rows, strict=True)
    ]
