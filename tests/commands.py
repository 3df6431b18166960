"""Running the tools as a user does, and what they must answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / "tools" / "train.py"


def assert_one_line(err: str, message: str) -> None:
    """Exactly one error line, which holds the message, and no traceback."""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0], err
    assert "Traceback" not in err


def train_in_processes(config: Path, run: Path, *overrides: str) -> None:
    """tools/train.py in a process of its own, which may start others; gate and dry run as given."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}",
        "MASTER_ADDR": "127.0.0.1",
    }
    environment.pop("MASTER_PORT", None)
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # a container may not be able to look up its own name
    words = [sys.executable, str(TOOL), str(config), "--run", str(run), "--trainer.log_every_n_steps=1"]
    done = subprocess.run([*words, *overrides], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
