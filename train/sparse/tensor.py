"""A sparse tensor: features on the occupied voxels of a batch of clouds."""

from __future__ import annotations

from torch import Tensor

from ...common import OlivineError
from .coordinates import describe
from .engines import EngineManager, start_manager
from .geometry import CoordinateSet, triple


class SparseTensor:
    """Features of the occupied voxels of a batch of clouds.

    Args:
        feature: floating point [N, C].
        coordinate: int32 [N, 4], (batch, x, y, z), distinct, on the feature's device; rows in any order, fastest in
            ascending order (as :func:`olivine.train.voxelize.voxelize` gives them).
        stride: the tensor stride, one number or one for each of x, y, z; coordinates are multiples of it.
        batch_size: the number of clouds, checked against the coordinates; by default the largest batch index and one.
        shape: the grid's size along x, y, z; only convolutions with padding (spconv's rule) need it.
        engine: what computes convolutions on this tensor and all that descend from it (:data:`~.engines.ENGINES`).

    Raises:
        OlivineError: a wrong dtype, shape or device, duplicates, coordinates out of range, an empty cloud.
    """

    def __init__(
        self,
        feature: Tensor,
        coordinate: Tensor,
        stride: int | tuple[int, int, int] = 1,
        *,
        batch_size: int | None = None,
        shape: tuple[int, int, int] | None = None,
        engine: str = "auto",
    ) -> None:
        _check_feature(feature, coordinate)
        self.manager, self.voxels = start_manager(
            engine, coordinate, triple(stride, "stride"), batch_size, None if shape is None else triple(shape, "shape")
        )
        self.feature = feature

    @classmethod
    def of(cls, feature: Tensor, voxels: CoordinateSet, manager: EngineManager) -> SparseTensor:
        """A tensor on voxels that are known already; what layers return."""
        tensor = cls.__new__(cls)
        tensor.feature, tensor.voxels, tensor.manager = feature, voxels, manager
        return tensor

    def replace(self, feature: Tensor) -> SparseTensor:
        """A tensor with other features on the same voxels.

        Raises:
            OlivineError: not one row for each voxel.
        """
        if feature.shape[0] != len(self.voxels):
            raise OlivineError(f"{len(self.voxels)} voxels need as many rows", where=f"feature {describe(feature)}")
        return SparseTensor.of(feature, self.voxels, self.manager)

    @property
    def coordinate(self) -> Tensor:
        """int32 [N, 4], (batch, x, y, z)."""
        return self.voxels.coordinate

    @property
    def stride(self) -> tuple[int, int, int]:
        """The tensor stride along x, y, z."""
        return self.voxels.stride

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """The grid's size along x, y, z, if it has one."""
        return self.voxels.shape

    @property
    def engine(self) -> str:
        """The name of what computes the convolutions."""
        return self.manager.engine

    @property
    def batch_size(self) -> int:
        """The number of clouds."""
        return self.manager.batch_size

    def __len__(self) -> int:
        return self.feature.shape[0]

    def __repr__(self) -> str:
        return f"SparseTensor(feature {describe(self.feature)}, stride {self.stride}, batch of {self.batch_size})"


def _check_feature(feature: Tensor, coordinate: Tensor) -> None:
    where = f"feature {describe(feature)}"
    if feature.ndim != 2 or not feature.is_floating_point():
        raise OlivineError("features must be floating point of the shape [N, C]", where=where)
    if feature.shape[0] != coordinate.shape[0]:
        raise OlivineError(f"as many rows as coordinates are needed, {describe(coordinate)}", where=where)
    if feature.device != coordinate.device:
        raise OlivineError(
            f"coordinates are elsewhere, {describe(coordinate)}", where=where, remedy="move both to one device"
        )
