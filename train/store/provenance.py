"""What a run depends on besides its step: config, data, versions, device; and what of it has changed since."""

import hashlib
import json
import os
import platform as python
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax

from ..config.load import flatten, load
from ..config.schema import CHANGEABLE, LABELS, RunConfig
from ..device.platform import device_kind, versions
from ..errors import UserError
from .rundir import differences, listed


def config_sum(config: RunConfig) -> str:
    """sha256 of the resolved config but for where the run is put and what it is called, and what may change."""
    kept = {key: value for key, value in flatten(config).items() if key not in (*LABELS, *CHANGEABLE)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def origin_of(config: RunConfig | None, data_sha256: str | None) -> dict[str, Any]:
    """What a manifest says of where its arrays come from; config and data are null where nobody knows."""
    return {
        "config": None if config is None else config_sum(config),
        "data": data_sha256,
        "versions": dict(_versions()),
        "device": device(),
    }


@cache
def _versions() -> dict[str, str]:
    """Looked up once: each takes a millisecond, and every save tells them."""
    return versions() | {"python": python.python_version()}


def device() -> dict[str, Any]:
    """The default device, how many of its kind JAX sees, and on a CPU the cores it computes with."""
    first = getattr(jax.config, "jax_default_device", None) or jax.devices()[0]
    kind = device_kind(first)
    found: dict[str, Any] = {"kind": kind, "name": first.device_kind, "count": len(jax.devices(first.platform))}
    if kind == "cpu":
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        found["cores"] = count
    return found


def elsewhere(origin: Mapping[str, Any]) -> str | None:
    """What of versions and device differs from when a checkpoint was saved, in words; None when nothing does."""
    changed = []
    now = origin_of(None, None)
    for section in ("versions", "device"):
        there = origin.get(section)
        there = there if isinstance(there, Mapping) else {}
        for key in {**now[section], **there}:
            old, new = there.get(key), now[section].get(key)
            if old != new:
                changed.append(f"{key if section == 'versions' else f'device {key}'} {old} then, {new} now")
    return "; ".join(changed) if changed else None


def same_config(where: Path, origin: Mapping[str, Any], config: RunConfig) -> None:
    """Raises UserError, with the keys, when a checkpoint was saved under another config than this one."""
    if origin.get("config") in (None, config_sum(config)):
        return
    different = differences(load(where / "config.yaml").variants[0].config, config)
    if different:  # else a key was added since, whose default is what was done before
        raise UserError(f"{where}: was saved under another config ({listed(different)})")


def same_data(where: Path, origin: Mapping[str, Any], known: Collection[str]) -> None:
    """Raises UserError when a checkpoint was saved on other data than the run's, of now or before a change allowed."""
    if origin.get("data") is not None and origin["data"] not in known:
        raise UserError(f"{where}: was saved by a run on other data (sha256 {str(origin['data'])[:12]}...)")
