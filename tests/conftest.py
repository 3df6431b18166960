"""What several test folders share."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

# One thread and a cache of its own: tests neither fight for cores nor read what a user's runs left behind.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["VLKD_CACHE"] = tempfile.mkdtemp(prefix="vlkd-tests-")

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture
def shared_data() -> Path:
    """Folder of the real data; the test skips where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data is not at {SHARED_DATA}")
    return SHARED_DATA
