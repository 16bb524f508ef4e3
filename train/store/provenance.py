"""Provenance of a run: config, data, versions and device, and their changes at a resumption."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..config.load import from_mapping
from ..config.schema import RunConfig
from ..errors import UserError
from .checkpoint import Header
from .rundir import differences, listed


def saved_config(where: Path, header: Header) -> RunConfig | None:
    """Returns the config that a checkpoint was saved under, None where it holds none.

    Keys that the schema has gained since have their defaults. Raises ConfigError.
    """
    return None if header.config is None else from_mapping(header.config, str(where)).variants[0].config


def same_config(where: Path, header: Header, config: RunConfig) -> None:
    """Raises UserError, with the keys, when a checkpoint was saved under another config than this one."""
    saved = saved_config(where, header)
    if saved is not None and (different := differences(saved, config)):
        raise UserError(f"{where}: was saved under another config ({listed(different)})")


def same_data(where: Path, header: Header, data_sums: Collection[str]) -> None:
    """Raises UserError when a checkpoint was saved on data whose hash is not among those of the run."""
    data = header.provenance.get("data")
    if data is not None and data not in data_sums:
        raise UserError(f"{where}: was saved by a run on other data (sha256 {str(data)[:12]}...)")


def environment_changes(header: Header, now: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Returns the versions and device facts that differ from those a checkpoint was saved with, None without any."""
    changes = []
    for section, here in now.items():
        there = header.provenance.get(section)
        if not isinstance(there, Mapping):  # saved before the section was recorded
            continue
        prefix = "device " if section == "device" else ""
        changes += [
            f"{prefix}{key} {there.get(key, 'unset')} then, {here.get(key, 'unset')} now"
            for key in {**here, **there}
            if there.get(key) != here.get(key)
        ]
    return "; ".join(changes) or None
