"""The vocabulary: what is looked for in an image, and the label class it counts as."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..common import OlivineError, PathLike, demand
from ..common.settings import read_yaml_file

THING, STUFF, GROUND = "thing", "stuff", "ground"
GROUND_CLASSES = ("road", "sidewalk", "terrain", "other flat", "driveable surface", "parking", "other ground")
"""As the prompts, nuScenes and SemanticKITTI name them, written with blanks."""
"""Classes that are ground by their name, in label stores whose prompts call them stuff; others say ``kind: ground``."""
_RESERVED = ".?"  # the detector's separators: a prompt that holds one would be split in two


@dataclass(frozen=True)
class Prompt:
    """One text prompt.

    Attributes:
        name: unique name of the prompt.
        words: what the detector is asked for, lower case.
        category: name of the label class the prompt counts as; several prompts may share one.
        kind: ``thing`` (countable objects), ``stuff`` (regions) or ``ground`` (stuff that lies flat on the ground).
    """

    name: str
    words: str
    category: str
    kind: str


@dataclass(frozen=True)
class Vocabulary:
    """The prompts in order, and the label classes they make.

    Attributes:
        prompts: in the detector's order.
        classes: class names in the order of their first prompt; ``classes[i]`` is value i + 1 of a label map.
    """

    prompts: tuple[Prompt, ...]
    classes: tuple[str, ...]

    def value(self, category: str) -> int:
        """The label map's value of a class name, 1..K."""
        return self.classes.index(category) + 1

    @property
    def prompt_values(self) -> tuple[int, ...]:
        """The label map's value of each prompt."""
        return tuple(self.value(p.category) for p in self.prompts)

    def is_thing(self, value: int) -> bool:
        """Whether a label map's value (1..K) is a class of things."""
        name = self.classes[value - 1]
        return next(p.kind for p in self.prompts if p.category == name) == THING

    def to_plain(self) -> list[dict[str, str]]:
        """JSON-able form, as in a vocabulary file."""
        return [{"name": p.name, "words": p.words, "class": p.category, "kind": p.kind} for p in self.prompts]


def _vocabulary(entries: list[Prompt], where: object) -> Vocabulary:
    classes: list[str] = []
    kind_of: dict[str, str] = {}
    seen_names: set[str] = set()
    seen_words: dict[str, str] = {}
    for prompt in entries:
        if prompt.name in seen_names:
            raise OlivineError(f"two prompts are named {prompt.name!r}", where=where, remedy="give each its own name")
        if prompt.words in seen_words:
            raise OlivineError(
                f"prompts {seen_words[prompt.words]!r} and {prompt.name!r} collide: both say {prompt.words!r}",
                where=where,
                remedy="remove one of them",
            )
        if kind_of.setdefault(prompt.category, prompt.kind) != prompt.kind:
            raise OlivineError(
                f"class {prompt.category!r} is both {kind_of[prompt.category]} and {prompt.kind}",
                where=where,
                remedy="choose one kind for the class",
            )
        seen_names.add(prompt.name)
        seen_words[prompt.words] = prompt.name
        if prompt.category not in classes:
            classes.append(prompt.category)
    if not 1 <= len(classes) <= 255:
        raise OlivineError(
            f"{len(classes)} classes; a label map holds 1 to 255", where=where, remedy="shorten the vocabulary"
        )
    return Vocabulary(tuple(entries), tuple(classes))


def _check_words(words: str, name: str, where: object) -> str:
    words = " ".join(words.lower().split())
    if not any(c.isalnum() for c in words):
        raise OlivineError(
            f"prompt {name!r} has no words", where=where, remedy="write what the detector shall look for"
        )
    if any(c in words for c in _RESERVED):
        raise OlivineError(
            f"the words of prompt {name!r} hold '.' or '?', which separate prompts",
            where=where,
            remedy="remove the character, or make two prompts of it",
        )
    return words


_THINGS = ("barrier", "bicycle", "bus", "car", "motorcycle", "pedestrian", "traffic cone", "truck")
_STUFF = ("road", "sidewalk", "terrain", "vegetation", "building")

DEFAULT_VOCABULARY = _vocabulary(
    [Prompt(n, n, n, THING) for n in _THINGS] + [Prompt(n, n, n, STUFF) for n in _STUFF], "the 13 prompts"
)
"""The paper's 13 prompts, classes 1..13 in its order (OLIVINE, section on weak labels)."""


VOCABULARIES = ("lidarseg16",)
"""The names of further vocabularies, files in ``data/``: the 13 classes, and what nuScenes' other three are called."""


def shipped_vocabulary(name: PathLike) -> Path | None:
    """The file of a vocabulary that comes with olivine; None where it has none of that name."""
    return Path(__file__).parent / "data" / f"{name}.json" if str(name) in VOCABULARIES else None


def load_vocabulary(path: PathLike | None) -> Vocabulary:
    """The vocabulary in a YAML or JSON file, or of a name of :data:`VOCABULARIES`, or the 13 prompts without one.

    The file holds a list; an entry is a name, or a mapping with ``name`` and optionally
    ``words`` (default: the name), ``class`` (default: the name) and ``kind`` (``thing``,
    the default, ``stuff`` or ``ground``).

    Raises:
        OlivineError: the file is missing or malformed, or prompts collide; names the file and the prompt.
    """
    if path is None:
        return DEFAULT_VOCABULARY
    if not Path(path).exists() and (shipped := shipped_vocabulary(path)) is not None:
        path = shipped
    plain = read_yaml_file(path)
    if not isinstance(plain, list) or not plain:
        raise OlivineError("a vocabulary is a list of prompts", where=path, remedy="see docs/labelgen.md")
    entries = []
    for position, entry in enumerate(plain, 1):
        if isinstance(entry, str):
            entry = {"name": entry}
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise OlivineError(f"prompt {position} has no name", where=path, remedy="write - name: car")
        unknown = set(entry) - {"name", "words", "class", "kind"}
        if unknown:
            raise OlivineError(
                f"prompt {entry['name']!r} has the unknown key {sorted(unknown)[0]!r}",
                where=path,
                remedy="the keys are name, words, class and kind",
            )
        demand(entry, {"words?": {str, int, float}, "class?": {str, int, float}, "kind?": str}, path, "write text")
        name = entry["name"]
        kind = entry.get("kind", THING)
        if kind not in (THING, STUFF, GROUND):
            raise OlivineError(
                f"prompt {name!r} is of kind {kind!r}", where=path, remedy="write thing, stuff or ground"
            )
        words = _check_words(str(entry.get("words", name)), name, path)
        entries.append(Prompt(name, words, str(entry.get("class", name)), kind))
    return _vocabulary(entries, path)
