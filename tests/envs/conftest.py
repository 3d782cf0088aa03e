"""Fixtures of several modules."""

from __future__ import annotations

import pytest

from . import smacv2_pair


@pytest.fixture
def packages(monkeypatch):
    """SMACv2's code, over a stand-in for PySC2, and the stand-in for SMACv2."""
    if not smacv2_pair.FOUND:
        pytest.skip("SMACV2_SOURCE names no checkout of https://github.com/oxwhirl/smacv2")
    pytest.importorskip("absl", reason="SMACv2 imports absl")
    yield smacv2_pair.Packages(monkeypatch)
    smacv2_pair.unload(*smacv2_pair.PACKAGES)
