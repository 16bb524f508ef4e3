"""A second transformer to compare the first with: numpy, float64, one sequence and one head at a time.

It has every rule and option; the claims' transformer (train/chain/by_hand.py) is one rule in thirty lines, in complex
arithmetic for its derivatives. They share the formulas below, which neither model/ nor train/core imports.
"""

from typing import Any

import jax
import numpy as np

from train.chain.by_hand import gelu, rms_norm, sigmoid, softmax

FORMULAS = {
    "relu": lambda x: np.where(x > 0, x, 0),
    "relu2": lambda x: np.where(x > 0, x, 0) ** 2,
    "silu": lambda x: x * sigmoid(x),
    "gelu": gelu,
    "linear": lambda x: x,
}
GATES = {"swiglu": FORMULAS["silu"], "geglu": FORMULAS["gelu"]}


def norm_formula(x, kind, eps):
    if kind == "rms":
        return rms_norm(x, eps)
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + eps)


def rotated(x):
    """[T, K]: the pair (i, i + K/2) as a complex number, turned by t * 10000^(-2i/K)."""
    half = x.shape[1] // 2
    z = x[:, :half] + 1j * x[:, half:]
    z = z * np.exp(1j * np.arange(len(x))[:, None] * 10_000.0 ** (-2 * np.arange(half) / x.shape[1]))
    return np.concatenate([z.real, z.imag], axis=1)


def waves(T, D):
    """Sines and cosines of Vaswani et al., entry by entry."""
    table = np.zeros((T, D))
    for t in range(T):
        for i in range(D):
            angle = t / 10_000 ** ((i - i % 2) / D)
            table[t, i] = np.cos(angle) if i % 2 else np.sin(angle)
    return table


class Reference:
    """`params`: as Network.apply takes them."""

    def __init__(self, config, params):
        self.config, self.params = config, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def norm(self, x, params):
        if self.config.norm == "none":
            return x
        y = norm_formula(x, self.config.norm, self.config.norm_eps)
        return y * params.get("gain", 1.0) + params.get("bias", 0.0)

    def linear(self, x, params):
        return x @ params["kernel"] + params.get("bias", 0.0)

    def attention(self, h, p, mix_value=lambda v: v, identity=(0.0, 1.0)):
        """[T, D] and the values before `mix_value`; attention weights are identity[0] I + identity[1] softmax."""
        c, T = self.config, len(h)
        q, k, raw = (self.linear(h, p[name]) for name in "qkv")
        v = mix_value(raw)
        K, outputs = c.width // c.heads, []
        for head in range(c.heads):
            shared = head // (c.heads // c.value_heads)  # neighbouring query heads share a key and value head
            qh, kh, vh = q[:, head * K :][:, :K], k[:, shared * K :][:, :K], v[:, shared * K :][:, :K]
            if c.qk_norm:
                qh, kh = norm_formula(qh, "rms", c.norm_eps), norm_formula(kh, "rms", c.norm_eps)
            if c.positions == "rope":
                qh, kh = rotated(qh), rotated(kh)
            usual = 1 / np.sqrt(K) if c.base_width is None else np.sqrt(c.base_width / (c.base_heads or c.heads)) / K
            scores = qh @ kh.T * (usual if c.attention_scale is None else c.attention_scale)
            if c.attention_cap is not None:
                scores = c.attention_cap * np.tanh(scores / c.attention_cap)
            for i in range(T):
                for j in range(T):
                    if c.positions == "alibi":
                        scores[i, j] -= 2 ** (-8 * (head + 1) / c.heads) * abs(i - j)
                    if (c.attention == "causal" and j > i) or (c.window is not None and abs(i - j) >= c.window):
                        scores[i, j] = -np.inf
            weights = identity[0] * np.eye(T) + identity[1] * softmax(scores)
            outputs.append(weights @ vh)
        return self.linear(np.concatenate(outputs, axis=1), p["o"]), raw

    def mlp(self, h, p):
        if self.config.activation in GATES:
            gate = GATES[self.config.activation](self.linear(h, p["gate"]))
            return self.linear(gate * self.linear(h, p["in_"]), p["out"])
        return self.linear(FORMULAS[self.config.activation](self.linear(h, p["in_"])), p["out"])

    def block(self, carry: Any, p, s, layer) -> Any:
        """One block: the carry is the stream x [T, D], or what the rule carries beside it too."""
        rule, r, L = self.config.residual.rule, p.get("residual", {}), self.config.layers
        options = self.config.residual
        for n in ("1", "2"):

            def f(h, n=n):
                return self.attention(h, p["attn"])[0] if n == "1" else self.mlp(h, p["mlp"])

            def norm(h, suffix="", n=n):
                return self.norm(h, p.get(f"norm_{n}{suffix}", {}))

            x = carry
            if rule == "none":
                carry = f(norm(x))
            elif rule in ("pre_ln", "gpt2_scaled", "stochastic_depth"):
                carry = s * x + f(norm(x))
            elif rule == "post_ln":
                carry = norm(s * x + f(x))
            elif rule == "sandwich":
                carry = s * x + norm(f(norm(x)), "_out")
            elif rule == "rezero":
                carry = s * x + r[f"alpha_{n}"] * f(x)
            elif rule == "skipinit":
                carry = s * x + r[f"alpha_{n}"] * f(norm(x))
            elif rule == "layerscale":
                carry = s * x + f(norm(x)) @ np.diag(r[f"lambda_{n}"])
            elif rule == "deepnorm":
                alpha = (2 * L) ** 0.25 if options.alpha is None else options.alpha
                carry = norm(s * alpha * x + f(x))
            elif rule == "highway":
                t = sigmoid(self.linear(x, r[f"gate_{n}"]))
                carry = t * f(norm(x)) + (1 - t) * x
            elif rule == "value_residual":
                x, first = carry
                if n == "1":
                    share = 0.0 if layer == 0 else r["lambda"]
                    y, v = self.attention(norm(x), p["attn"], lambda v, a=share, b=first: (1 - a) * v + a * b)
                    carry = s * x + y, (v if layer == 0 else first)
                else:
                    carry = s * x + f(norm(x)), first
            elif rule == "x0_lambda":
                x, x0 = carry
                x = r["lambda_0"] * x + r["lambda_1"] * x0 if n == "1" else x
                carry = s * x + f(norm(x)), x0
            elif rule in ("hyper_connections", "mhc"):
                carry = self.streams_block(carry, f, norm, r, n, s)
            elif rule == "attnres":
                sources, h, done = carry
                y, size = f(norm(h)), 1 if options.block is None else 2 * options.block
                sources = [*sources, y] if done % size == 0 else [*sources[:-1], sources[-1] + y]
                scores = np.stack([norm_formula(v, "rms", self.config.norm_eps) @ r[f"query_{n}"] for v in sources], -1)
                carry = sources, sum(a[:, None] * v for a, v in zip(softmax(scores).T, sources, strict=True)), done + 1
            elif rule == "value_skipinit":
                carry = (
                    self.attention(norm(x), p["attn"], identity=(r["alpha"], r["beta"]))[0] if n == "1" else f(norm(x))
                )
            else:
                raise NotImplementedError(rule)
        return carry

    def streams_block(self, H, f, norm, r, n, s):
        """One sublayer on streams [n, T, D], token by token and matrix by matrix."""
        own, count, T = {k: r[f"{k}_{n}"] for k in ("read", "across", "write")}, len(H), H.shape[1]
        read, across, write = np.zeros((T, count)), np.zeros((T, count, count)), np.zeros((T, count))
        for t in range(T):
            if self.config.residual.rule == "hyper_connections":
                read[t], across[t], write[t] = own["read"], own["across"].T, own["write"]  # across: to, from
                if self.config.residual.dynamic:
                    h = norm_formula(H[:, t], "rms", self.config.norm_eps)

                    def moving(name, h=h):
                        part = r[f"dynamic_{name}_{n}"]
                        return part["scale"] * np.tanh(h @ part["kernel"])

                    read[t] += moving("read")[:, 0]
                    across[t] += moving("across").T
                    write[t] += moving("write")[:, 0]
            else:
                h = norm_formula(H[:, t].reshape(-1), "rms", self.config.norm_eps)
                z = {k: part["gate"] * (h @ part["kernel"]) + part["bias"] for k, part in own.items()}
                m = np.exp(z["across"].reshape(count, count))
                for _ in range(self.config.residual.rounds or 20):
                    m = m / m.sum(axis=0, keepdims=True)
                    m = m / m.sum(axis=1, keepdims=True)
                read[t], across[t], write[t] = sigmoid(z["read"]), m, 2 * sigmoid(z["write"])
        mixed = np.stack([read[t] @ H[:, t] for t in range(T)])
        y = f(norm(mixed))
        return np.stack([s * across[t] @ H[:, t] + np.outer(write[t], y[t]) for t in range(T)], axis=1)

    def carries(self, tokens, s):
        """Returns the carry that enters each block, and the one that leaves the last."""
        x = self.params["embed"][tokens]
        if self.config.positions == "learned":
            x = x + self.params["positions"][: len(tokens)]
        if self.config.positions == "sinusoidal":
            x = x + waves(len(tokens), self.config.width)
        copies = np.stack([x] * (self.config.residual.streams or 4))
        start = {
            "value_residual": (x, 0.0),
            "x0_lambda": (x, x),
            "hyper_connections": copies,
            "mhc": copies,
            "attnres": ([x], x, 0),
        }.get(self.config.residual.rule, x)
        carries = [start]
        for layer in range(self.config.layers):
            p = jax.tree.map(lambda leaf, layer=layer: leaf[layer], self.params["blocks"])
            carries.append(self.block(carries[-1], p, s, layer))
        return carries

    def streams(self, tokens, s):
        """The stream of one sequence at every depth, [L+1, T, D]."""
        picked = {"value_residual": lambda c: c[0], "x0_lambda": lambda c: c[0], "attnres": lambda c: c[1]}
        pick = picked.get(self.config.residual.rule, lambda c: c)
        return np.stack([pick(carry) for carry in self.carries(tokens, s)])

    def logits(self, tokens, s=1.0):
        """[B*T, V]"""
        last = [self.streams(sequence, s)[-1] for sequence in tokens]
        x = np.concatenate([streams.sum(axis=0) if streams.ndim == 3 else streams for streams in last])
        if self.config.residual.rule not in ("post_ln", "deepnorm"):
            x = self.norm(x, self.params.get("norm_f", {}))
        logits = x @ self.params.get("head", self.params["embed"]).T
        if self.config.base_width is not None:
            logits = logits * self.config.base_width / self.config.width
        cap = self.config.logit_cap
        return logits if cap is None else cap * np.tanh(logits / cap)
