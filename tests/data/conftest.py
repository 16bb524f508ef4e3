"""Every test of data in a folder of its own, with a cache of its own and no proxy."""

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache folder, which does not exist yet; the current folder is the one above."""
    monkeypatch.setenv("DELTAFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"
