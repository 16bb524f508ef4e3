"""Which device, and in which precision: decided before anything is compiled."""

from types import SimpleNamespace

import jax
import pytest

from train.config.schema import TrainConfig
from train.device.platform import Platform, compute_dtype, select
from train.errors import UserError


def device(platform: str, capability: str | None = None):
    own = {} if capability is None else {"compute_capability": capability}
    return SimpleNamespace(platform=platform, device_kind="made up", **own)


@pytest.mark.parametrize(
    ("kind", "capability", "dtype"),
    [
        ("cpu", None, "float32"),
        ("tpu", None, "bfloat16"),
        ("gpu", "7.5", "float32"),
        ("gpu", "8.0", "bfloat16"),
        ("gpu", "10.3", "bfloat16"),
        ("gpu", None, "float32"),
        ("gpu", "gfx942", "float32"),
    ],
)
def test_auto_is_the_fastest_dtype_that_the_device_has(kind, capability, dtype):
    platform = Platform(device(kind, capability), kind, 1)
    assert compute_dtype(TrainConfig(), platform) == dtype
    assert compute_dtype(TrainConfig(dtype="float32"), platform) == "float32"


@pytest.mark.parametrize(
    ("dtype", "platform", "capability", "message"),
    [
        (
            "bfloat16",
            "cuda",
            "7.5",
            "bfloat16 needs a GPU of compute capability 8 .* 1 x made up .gpu. of 7.5; use float32 or auto",
        ),
        (
            "float64",
            "cuda",
            "9.0",
            "float64 runs on cpu only, and the device is 1 x made up .gpu.; set train.device=cpu",
        ),
        ("float64", "tpu", None, "float64 runs on cpu only"),
    ],
)
def test_a_dtype_that_the_device_does_not_have(monkeypatch, dtype, platform, capability, message):
    updates = []
    monkeypatch.setattr(jax, "local_devices", lambda backend=None: [device(platform, capability)])
    monkeypatch.setattr(jax.config, "update", lambda *item: updates.append(item))
    with pytest.raises(UserError, match=f"train.dtype: {message}"):
        select(TrainConfig(dtype=dtype))
    assert "jax_default_device" not in dict(updates)


def test_where_nothing_is_known_of_bfloat16_it_is_taken_at_its_word(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda backend=None: [device("rocm", "gfx942")])
    monkeypatch.setattr(jax.config, "update", lambda *item: None)
    config = TrainConfig(dtype="bfloat16")
    assert compute_dtype(config, select(config)) == "bfloat16"


def test_what_the_environment_asks_for_is_named(monkeypatch):
    """JAX asserts, without a word, that a platform it was told to start is there."""

    def started(backend=None):
        raise AssertionError

    monkeypatch.setattr(jax, "local_devices", started)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(UserError) as refused:
        select(TrainConfig())
    assert str(refused.value) == (
        "train.device: no device here; JAX sees no device at all (AssertionError); "
        "JAX_PLATFORMS=cuda is set; unset it to let JAX choose"
    )


def test_a_device_that_is_not_there():
    with pytest.raises(UserError, match="train.device: no tpu here; JAX sees cpu"):
        select(TrainConfig(device="tpu"))
