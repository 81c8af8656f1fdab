"""A folder of one network's files, one for each frame or cloud: two networks' files never lie in it side by side.

The folder's mark says whose files these are and which; what another network made there goes before the first is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..common import MARK, OlivineError, PathLike, claim_output, demand, disk_error, inside, read_json, write_json

_REMEDY = "choose another --out folder, or remove this one yourself"


def read_mark(folder: PathLike) -> dict[str, Any]:
    """What a folder's mark says: ``network`` and ``written`` of :func:`begin_output`; empty where there is none.

    Raises:
        OlivineError: it is damaged.
    """
    path = Path(folder) / MARK
    if not path.is_file():
        return {}
    found: dict[str, Any] = demand(read_json(path, _REMEDY), {"network?": dict, "written?": [str]}, path, _REMEDY)
    return found


def begin_output(
    folder: PathLike, network: dict[str, Any], names: Iterable[str], earlier: Iterable[str] = (), *, inputs: Any = ()
) -> None:
    """Make a folder ready for a network's files: what another one made there is removed, and the mark says what comes.

    Args:
        folder: made where there is none; see :func:`~olivine.common.claim_output`.
        network: plain values, of which the files are made: the checkpoint's SHA-256 and what else decides them.
        names: of the files that will be written, relative to ``folder``, what makes the folder look whole first.
        earlier: further files that a version of olivine that kept no account may have left there.
        inputs: what the command reads.

    Raises:
        OlivineError: the folder is somebody else's, or a file in it that would be replaced; the disk is full.
    """
    folder, names = Path(folder), list(names)
    claim_output(folder, inputs=inputs)
    mark = read_mark(folder)
    written = mark.get("written", [*earlier, *names])
    known = set(written)
    if foreign := [name for name in names if name not in known and (folder / name).exists()]:
        raise OlivineError(
            "exists, and olivine did not make it; it is left alone", where=folder / foreign[0], remedy=_REMEDY
        )
    if mark.get("network") == network:
        names = list(dict.fromkeys([*written, *names]))
    else:
        for name in written:
            path = inside(folder, name, folder / MARK, write=True)
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise disk_error(error, path) from None
    write_json(folder / MARK, {**mark, "made_by": "olivine", "network": network, "written": names})
