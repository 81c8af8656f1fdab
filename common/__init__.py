"""What every room shares, one file each: devices, errors, whole-or-nothing files, locks, processes, settings, tensors.

Nothing here knows a data set, a network or a command.
"""

from .devices import gains_by_bfloat16, gpu_problem, tell_of_device
from .errors import FULL_DISK, Failure, OlivineError, PathLike, disk_error, memory_error
from .files import (
    MARK,
    atomic_directory,
    atomic_file,
    check_output,
    check_output_file,
    check_replaceable,
    claim_output,
    digest,
    inside,
    is_relative_name,
    remove_leftovers,
    sha256_file,
    weights_folder,
    write_bytes,
    write_json,
)
from .pixels import pixels_of
from .processes import (
    children_ignore_ctrl_c,
    children_share_cores,
    cores,
    ctrl_c_afterwards,
    is_running,
    package_versions,
    stop_signals,
    writer_name,
)
from .progress import progress, track
from .reading import Whole, demand, parse_csv, parse_json, read_bytes, read_csv, read_json, read_text

__all__ = [
    "FULL_DISK",
    "MARK",
    "Failure",
    "OlivineError",
    "PathLike",
    "Whole",
    "atomic_directory",
    "atomic_file",
    "check_output",
    "check_output_file",
    "check_replaceable",
    "children_ignore_ctrl_c",
    "children_share_cores",
    "claim_output",
    "cores",
    "ctrl_c_afterwards",
    "demand",
    "digest",
    "disk_error",
    "gains_by_bfloat16",
    "gpu_problem",
    "inside",
    "is_relative_name",
    "is_running",
    "memory_error",
    "package_versions",
    "parse_csv",
    "parse_json",
    "pixels_of",
    "progress",
    "read_bytes",
    "read_csv",
    "read_json",
    "read_text",
    "remove_leftovers",
    "sha256_file",
    "stop_signals",
    "tell_of_device",
    "track",
    "weights_folder",
    "write_bytes",
    "write_json",
    "writer_name",
]
