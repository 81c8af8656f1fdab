"""What a network and a method of a user's own are held to while they train: a mistake in them is one line."""

from __future__ import annotations

from torch import Tensor, nn

from ..common import OlivineError
from .group import Group
from .method import Method, Term


def check_places(place: Tensor, backbone: nn.Module) -> None:
    """Raise where a network gives pairs' points no place, see :class:`~olivine.train.backbone.Features`.

    Args:
        place: int64 [M].

    Raises:
        OlivineError: says how many.
    """
    if missing := int((place < 0).sum()):
        raise OlivineError(
            f"gives {missing:,} of {len(place):,} pairs' points no place (−1)",
            where=f"{type(backbone).__name__}.encode",
            remedy="give every point that has a voxel a place",
        )


def without_gradient(backbone: nn.Module, name: str, processes: int) -> list[str]:
    """A note of the parameters that a backward pass gave no gradient, if there are any.

    Raises:
        OlivineError: there are, and several processes, which would wait for one another's.
    """
    found = [key for key, one in backbone.named_parameters() if one.requires_grad and one.grad is None]
    if not found:
        return []
    what = f"{', '.join(found[:3])}{' …' * (len(found) > 3)} of the backbone {name} got no gradient"
    if processes > 1:
        raise OlivineError(
            what, where="several processes", remedy="use these parameters, or set requires_grad to False on them"
        )
    return [f"{what}: not trained"]


def terms_of(method: Method, group: Group) -> dict[str, Term]:
    """The terms of a group by a method.

    Raises:
        OlivineError: it returns something else, or a term that it does not name.
    """
    found, who = method(group), f"{type(method).__name__}.forward"
    if not isinstance(found, dict) or not all(isinstance(term, Term) for term in found.values()):
        raise OlivineError("returns no dictionary of terms", where=who, remedy="return {name: Term(value, weight), …}")
    if unnamed := [name for name in found if name not in method.terms]:
        raise OlivineError(
            f"returns a term {unnamed[0]!r} that `terms` does not name", where=who, remedy="name it there"
        )
    return found
