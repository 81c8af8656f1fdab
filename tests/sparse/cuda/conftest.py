"""Where Triton is not installed (it comes with PyTorch's CUDA wheels), nothing here but the choice of an engine can be tested."""

from __future__ import annotations

import importlib.util

collect_ignore = [] if importlib.util.find_spec("triton") else ["test_ahead_of_time.py", "test_interpreter.py"]
