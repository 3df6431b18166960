"""One line about the machine, for every result file."""

from __future__ import annotations

import os
import platform
from datetime import date


def machine() -> str:
    """Cores, processor, Python and torch versions, date."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return (
        f"Machine: {os.cpu_count()} cores, {device}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, {date.today()}."
    )
