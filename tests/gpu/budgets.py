"""What a step of each preset may cost on a GPU besides the sparse engine: these numbers only fall.

Counted on the pretend GPU in one step, of four contrast groups (``paper``) or two, without what is written at the end of
an epoch, and with tiny inputs: a block of a loss, a convolution of the small encoder or a piece of a foreach kernel is
one launch here. The engine in ``train/sparse`` is counted apart.
"""

from __future__ import annotations

from typing import NamedTuple


class Budget(NamedTuple):
    """Waits of the host and kernel launches in a step, and in what a thread makes ready for it while the last one computes."""

    waits: int
    launches: int
    ahead_waits: int = 1
    ahead_launches: int = 99


#: By preset. The first counts are in docs/gpu.md.
MOST = {
    "paper": Budget(2, 1252, 1, 63),
    "cpu": Budget(2, 1694, 1, 62),
    "ppkt": Budget(2, 419, 1, 65),
    "slidr": Budget(1, 2030, 1, 65),
    "st-slidr": Budget(1, 2100, 1, 65),
    "seal": Budget(2, 2176, 2, 66),
    "uov-tmp": Budget(1, 353, 1, 39),
    "distil": Budget(1, 315, 1, 58),
}

#: Waits of a labeler's batch of two images, with two layers of the detector's decoder; before, with one, 482, 382 and 378.
LABELER_WAITS = {"grounded-sam": 5, "hf-grounded-sam": 3, "mm-grounded-sam2": 3}

#: Waits of a step of fine-tuning, with the sparse engine's.
FINE_TUNING_WAITS = 1
