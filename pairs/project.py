"""The projection under the name that other programs import; it stands in :mod:`olivine.readers.project`."""

from ..readers.project import look_up, project_points

__all__ = ["look_up", "project_points"]
