"""What a data set's benchmark fixed, as plain values: the data set's file says it, and shards carry it downstream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..common import OlivineError, Whole, demand
from ..common.settings import settings_to_plain


def plain_name(name: str) -> str:
    """A class's name as data sets, prompts and their tables may all spell it."""
    return name.replace("_", " ").replace("-", " ").lower()


def values_of_classes(
    point_classes: Sequence[str], labels: Sequence[str], prompt_of: Callable[[str], str | None]
) -> list[int]:
    """The label's value that each point class is, by its own name or else by its prompt's; 0 where there is no such label.

    Args:
        labels: names of the values from 1 on, however they spell a blank.
        prompt_of: the prompt of a point class by its data set's table.

    Returns:
        of no class and of each point class, [classes + 1].
    """
    value = {plain_name(name): k for k, name in enumerate(labels, 1)}
    names = [(plain_name(c), plain_name(prompt_of(c) or "")) for c in point_classes]
    return [0, *(value.get(own, value.get(prompt, 0)) for own, prompt in names)]


@dataclass(frozen=True)
class Submission:
    """The files that predictions are handed in as.

    In the names ``{split}``, ``{token}``, ``{folder}`` and ``{stem}`` stand for the split, the frame's token, and what
    is before and after the token's slash.

    Attributes:
        file: of one frame's predictions, an unsigned integer for each point.
        bytes: of each integer, little-endian.
        original_ids: write the ids of the data set's own label files; else the number of the class, from 1 on.
        chosen_ids: by class, where the smallest of several ids is not the one to write.
        splits: what ``{split}`` is, where it is not the split's own name.
        declaration: a JSON file about the whole submission, empty for none.
        declares: its content; the text ``pre_trained`` becomes true where the weights saw images or other data.
    """

    file: str
    bytes: Literal[1, 2, 4] = 1
    original_ids: bool = False
    chosen_ids: dict[str, int] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    declaration: str = ""
    declares: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """What decides a probe, a fine-tuning run and their scores, beside the network.

    Attributes:
        fraction_of: 10 % of the training set is every 10th of its ``frames``, from the first, or every 10th of its
            ``scenes``, from the 10th.
        batch: published frames of a step.
        mean_over: the classes in the scorer's mean IoU: ``all``, those ``present`` in truth or prediction, or none.
        ground: classes that the ground right around the vehicle can be, for smoothing; empty: it is not looked for.
        prompts: the prompt that each point class is, of those that one says plainly.
        submission: None where predictions are handed in nowhere.
    """

    fraction_of: Literal["frames", "scenes"] = "frames"
    batch: int = 16
    mean_over: Literal["all", "present", "none"] = "none"
    ground: tuple[str, ...] = ()
    prompts: dict[str, str] = field(default_factory=dict)
    submission: Submission | None = None

    def prompt_of(self, point_class: str) -> str | None:
        """The prompt that a point class is, None where it is none; blanks, ``-`` and ``_`` are the same."""
        plain = {plain_name(key): prompt for key, prompt in self.prompts.items()}
        return plain.get(plain_name(point_class))

    def to_plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return settings_to_plain(self)


_SUBMISSION = {
    "file": str,
    "bytes": {Whole(1, 2), Whole(4, 4)},
    "original_ids": bool,
    "chosen_ids": {str: Whole(0, 2**32 - 1)},
    "splits": {str: str},
    "declaration": str,
    "declares": dict,
}
_BENCHMARK = {
    "fraction_of": str,
    "batch": Whole(1),
    "mean_over": str,
    "ground": [str],
    "prompts": {str: str},
    "submission": {dict, None},
}


def benchmark_from_plain(plain: Any, where: object, remedy: str) -> Benchmark:
    """A benchmark as :meth:`Benchmark.to_plain` made it; ``where`` and ``remedy`` are for the message.

    Raises:
        OlivineError: a key is missing or wrong.
    """
    checked = demand(plain, _BENCHMARK, where, remedy)
    values = {key: checked[key] for key in _BENCHMARK}
    for key, known in (("fraction_of", ("frames", "scenes")), ("mean_over", ("all", "present", "none"))):
        if values[key] not in known:
            raise OlivineError(f"{key} is {values[key]!r}, expected {' or '.join(known)}", where=where, remedy=remedy)
    if values["submission"] is not None:
        submission = demand(values["submission"], _SUBMISSION, where, remedy)
        values["submission"] = Submission(**{key: submission[key] for key in _SUBMISSION})
    return Benchmark(**{**values, "ground": tuple(values["ground"])})
