"""The fastest square matrix product of JAX or PyTorch on the device, the peak that model FLOP/s are compared with."""

import time
from collections.abc import Callable
from dataclasses import replace

from .contestant import Contestant, Unavailable, cpu, cpu_has_bfloat16, facts

CPU_SIZES = (1024, 2048)
ACCELERATOR_SIZES = (4096, 8192)
PRODUCTS = 4  # a step, to make the cost of a call negligible


def jax_products(size: int, dtype: str) -> Callable[[int], float]:
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(jax.random.key(0))
    # Entries of variance 1/size: the product keeps the scale of its left factor, however often it is taken.
    a, b = (jax.random.normal(key, (size, size), jnp.dtype(dtype)) * size**-0.5 for key in keys)

    @jax.jit
    def products(a, b):
        for _ in range(PRODUCTS):
            a = a @ b
        return a

    def run(n: int) -> float:
        start = time.perf_counter()
        out = products(a, b)
        for _ in range(n - 1):
            out = products(a, b)
        jax.block_until_ready(out)
        return time.perf_counter() - start

    return run


def torch_products(size: int, dtype: str) -> Callable[[int], float]:
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_float32_matmul_precision("high")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(size, size).mul(size**-0.5).to(device, getattr(torch, dtype)) for _ in range(2))
    left, right = torch.empty_like(a), torch.empty_like(a)

    def run(n: int) -> float:
        start = time.perf_counter()
        for _ in range(n):
            torch.matmul(a, b, out=left)
            for i in range(1, PRODUCTS):
                source, target = (left, right) if i % 2 else (right, left)
                torch.matmul(source, b, out=target)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return run


def contestant(framework: str, dtype: str) -> Contestant:
    """The best of two sizes. Raises Unavailable for bfloat16 on a CPU without the instructions."""
    stated = facts(framework, dtype)
    on_cpu = stated.device == cpu()
    if dtype == "bfloat16" and on_cpu and not cpu_has_bfloat16():
        raise Unavailable("no bfloat16 instructions")
    products = jax_products if framework == "jax" else torch_products
    runs, rates = {}, {}
    for size in CPU_SIZES if on_cpu else ACCELERATOR_SIZES:
        run = runs[size] = products(size, dtype)
        run(1)
        rates[size] = PRODUCTS * 2.0 * size**3 / min(run(1) for _ in range(3))
    best = max(rates, key=lambda size: rates[size])
    versions = f"{stated.versions}, {best} x {best}"
    return Contestant(runs[best], replace(stated, versions=versions, flops=PRODUCTS * 2.0 * best**3))
