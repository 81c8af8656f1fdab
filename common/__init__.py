"""What every room shares, one file each: devices, errors, whole-or-nothing files, progress, processes, settings.

Nothing here knows a data set, a network or a command.
"""

from .devices import gains_by_bfloat16
from .errors import FULL_DISK, Failure, OlivineError, PathLike, disk_error
from .files import (
    MARK,
    atomic_directory,
    atomic_file,
    check_output,
    check_output_file,
    check_replaceable,
    claim_output,
    digest,
    read_json,
    remove_leftovers,
    sha256_file,
    write_bytes,
    write_json,
)
from .pixels import pixels_of
from .processes import (
    children_deaf_to_ctrl_c,
    children_share_cores,
    cores,
    is_running,
    package_versions,
    stop_signals,
    writer_name,
)
from .progress import progress, track

__all__ = [
    "FULL_DISK",
    "MARK",
    "Failure",
    "OlivineError",
    "PathLike",
    "atomic_directory",
    "atomic_file",
    "check_output",
    "check_output_file",
    "check_replaceable",
    "children_deaf_to_ctrl_c",
    "children_share_cores",
    "claim_output",
    "cores",
    "digest",
    "disk_error",
    "gains_by_bfloat16",
    "is_running",
    "package_versions",
    "pixels_of",
    "progress",
    "read_json",
    "remove_leftovers",
    "sha256_file",
    "stop_signals",
    "track",
    "write_bytes",
    "write_json",
    "writer_name",
]
