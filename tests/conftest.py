"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

REFERENCE = Path(os.environ.get("MAURY_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Directory of the reference data, or skip."""
    if not (REFERENCE / "data").is_dir():
        pytest.skip(f"reference data are not at {REFERENCE} (set MAURY_SHARED to their place)")
    return REFERENCE
