"""The machine that a number was measured on."""

from __future__ import annotations

import os
import platform
from datetime import date
from typing import Any


def machine() -> dict[str, Any]:
    """Device, cores, threads that torch uses, versions, date; plain values."""
    import torch

    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": str(date.today()),
    }
