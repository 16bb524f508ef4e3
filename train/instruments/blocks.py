"""Instruments inside the blocks: attention, hidden units, delta's two ways down, Jacobians, a rule's parameters."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from model.residual import Carry, rule_of
from model.residual.attnres import AttnRes
from model.residual.streams import Streams

from ..core.loss import losses, mean_loss
from ..gradflow import jacobian as jacobians
from ..gradflow import mixing, per_block
from .readings import Matrix, Reading
from .snapshot import Snapshot


def attention(snapshot: Snapshot) -> dict[str, Reading]:
    """Entropy and largest logit, mean and maximum over the heads and of each."""
    anatomy = snapshot.anatomy(snapshot.batch().inputs)
    of = per_block.observed(anatomy, {"attention": per_block.attention})["attention"]
    return {
        "attn/entropy": {"layer": jnp.mean(of.entropy, axis=1), "head": of.entropy},
        "attn/logit_max": {"layer": jnp.max(of.logit_max, axis=1), "head": of.logit_max},
    }


def units(snapshot: Snapshot) -> dict[str, Reading]:
    """Share of MLP units that are exactly 0 for every token."""
    anatomy = snapshot.anatomy(snapshot.batch().inputs)
    return {"act/dead_units": per_block.observed(anatomy, {"mlp": per_block.dead_units})["mlp"]}


def split(snapshot: Snapshot) -> dict[str, Reading]:
    """Delta past the sublayers of each block and through them."""
    batch = snapshot.batch()
    anatomy = snapshot.anatomy(batch.inputs)

    def score(logits: Array, targets: Array) -> Array:
        return losses(snapshot.network, logits, batch._replace(targets=targets), snapshot.hp.model)

    def loss(carry: Carry) -> Array:
        return mean_loss(anatomy.logits(carry, score, batch.targets), batch)

    parts = per_block.split(anatomy, loss)
    return {"split/skip": parts.skip, "split/branch": parts.branch, "split/cosine": parts.cosine}


def jacobian(snapshot: Snapshot) -> dict[str, Reading]:
    """Singular values for the first example of the batch: examples do not touch one another."""
    anatomy = snapshot.anatomy(snapshot.batch().inputs[:1])
    of = jacobians.jacobians(anatomy, jax.random.key(0))
    blocks = {f"jacobian/{key}": value for key, value in of.block._asdict().items()}
    return blocks | {f"jacobian/stack_{key}": value for key, value in of.stack._asdict().items()}


def residual(snapshot: Snapshot) -> dict[str, Reading]:
    """The rule's own parameters, and its mixing weights as matrices."""
    own, rule = mixing.own_parameters(snapshot.params), rule_of(snapshot.config.model)
    growth = snapshot.config.model.rule.growth
    pictures = mixing.matrices(own, [name for name, kind in growth.items() if kind == "scalar"])
    if isinstance(rule, Streams):
        pictures = mixing.stream_mixing(rule, snapshot.params["blocks"]["residual"])
    if isinstance(rule, AttnRes):
        anatomy = snapshot.anatomy(snapshot.batch().inputs)
        pictures = {"mixing": mixing.depth_mixing(rule, anatomy, own, snapshot.hp.model["norm_eps"])}
    readings: dict[str, Reading] = {f"residual/{name}": values for name, values in mixing.sizes(own).items()}
    return readings | {f"residual/{name}/matrix": Matrix(values) for name, values in pictures.items()}
