"""The transformer and its formulas a second time: numpy, float64, one sequence.

Claims and tests compare the project's code with these, so neither JAX nor model/ is imported: no mistake is on both
sides. Every function of x takes complex values too, for `jacobian`. Axes as in model/__init__.py; n: streams.
"""

import math
from collections.abc import Callable, Mapping
from itertools import permutations
from operator import itemgetter
from typing import Any

import numpy as np
from jaxtyping import Float, Int

Array = np.ndarray
Tree = Mapping[str, Any]  # parameters of the network or of a part of it, nested as model/network.py has them
Carry = tuple[Array, list[Array]]  # the stream, [T, D] or [T, n, D], and what a rule keeps of blocks before
STEP = 1e-100  # of `jacobian`: its square is negligible next to 1, and no product of a few entries with it underflows


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def gelu(x: Array) -> Array:
    """The tanh form (Hendrycks & Gimpel 2016, 1606.08415)."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu_slope(x: Array) -> Array:
    t = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.where(np.real(x) > 0, x, 0),
    "relu2": lambda x: np.where(np.real(x) > 0, x, 0) ** 2,
    "silu": lambda x: x * sigmoid(x),
    "gelu": gelu,
    "linear": lambda x: x,
}
GATES = {"swiglu": ACTIVATIONS["silu"], "geglu": gelu}


def softmax(x: Float[Array, "... V"]) -> Float[Array, "... V"]:
    e = np.exp(x - np.real(x).max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def normalized(x: Float[Array, "... D"], kind: str, eps: float) -> Float[Array, "... D"]:
    x = x - x.mean(axis=-1, keepdims=True) if kind == "layer" else x
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps)


def jacobian(function: Callable[[Array], Array], x: Float[Array, "..."]) -> Float[Array, "outputs inputs"]:
    """Returns the derivatives of every entry of f(x) by every entry of x, exact but for rounding.

    Im f(x + ih) / h is not a difference of two values, so h may be as small as the range permits (Squire & Trapp
    1998, SIAM Review 40:110).

    >>> jacobian(np.exp, np.array([0.0, 1.0])).tolist() == np.diag(np.exp([0.0, 1.0])).tolist()
    True
    """
    steps = 1j * STEP * np.eye(x.size).reshape(-1, *x.shape)
    return np.stack([np.imag(function(x + step)).ravel() / STEP for step in steps], axis=1)


def rotated(x: Float[Array, "T K"]) -> Float[Array, "T K"]:
    """The pair (i, i + K/2) turned by t * 10000^(-2i/K) (RoPE, Su et al. 2021, 2104.09864)."""
    T, K = x.shape
    a, b = np.split(x, 2, axis=1)
    angle = np.arange(T)[:, None] * 10_000.0 ** (-2 * np.arange(K // 2) / K)
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], axis=1)


def waves(T: int, D: int) -> Float[Array, "T D"]:
    """Sines at even and cosines at odd places (Vaswani et al. 2017, 1706.03762, section 3.5)."""
    i = np.arange(D)
    angle = np.arange(T)[:, None] / 10_000.0 ** ((i - i % 2) / D)
    return np.where(i % 2, np.cos(angle), np.sin(angle))


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    return {k: mapped(function, v) for k, v in tree.items()} if isinstance(tree, Mapping) else function(tree)


class Reference:
    """The network of a ModelConfig, with all of its options and residual rules.

    `params`: as Network.apply takes them. `s` is the skip scale.
    """

    def __init__(self, config: Any, params: Tree) -> None:
        self.config, self.params = config, mapped(lambda leaf: np.asarray(leaf, np.float64), params)
        self.blocks = [mapped(itemgetter(layer), self.params["blocks"]) for layer in range(config.layers)]
        self.table = self.params.get("head", self.params["embed"])  # of the head

    def norm(self, p: Tree, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        match self.config.norm:
            case "none":
                return x
            case "dyt":
                y = np.tanh(p["alpha"] * x)
            case "derf":
                y = np.vectorize(math.erf)(p["alpha"] * x + p["shift"])
            case kind:
                y = normalized(x, kind, self.config.norm_eps)
        return y * p.get("gain", 1.0) + p.get("bias", 0.0)

    def linear(self, p: Tree, x: Float[Array, "T D"]) -> Float[Array, "T F"]:
        return x @ p["kernel"] + p.get("bias", 0.0)

    def mlp(self, p: Tree, h: Float[Array, "T D"]) -> Float[Array, "T D"]:
        x, activation = self.linear(p["in_"], h), self.config.activation
        x = GATES[activation](self.linear(p["gate"], h)) * x if activation in GATES else ACTIVATIONS[activation](x)
        return self.linear(p["out"], x)

    def attention(
        self, p: Tree, h: Float[Array, "T D"], values: Array | None = None, identity: float = 0.0, weight: float = 1.0
    ) -> Float[Array, "T D"]:
        """softmax(q kᵀ / √K) v of each head, side by side, and the output matrix.

        `values` replaces v; the softmax is replaced by identity I + weight softmax.
        """
        c, T = self.config, len(h)
        K = c.width // c.heads
        q, k = self.linear(p["q"], h), self.linear(p["k"], h)
        v = self.linear(p["v"], h) if values is None else values
        usual = 1 / np.sqrt(K) if c.base_width is None else np.sqrt(c.base_width / (c.base_heads or c.heads)) / K
        back = np.subtract.outer(np.arange(T), np.arange(T))  # tokens from the query back to the key
        hidden = (back < 0) & (c.attention == "causal") | (np.abs(back) >= (c.window or T))
        heads = []
        for head in range(c.heads):
            shared = head * c.value_heads // c.heads  # neighbouring query heads share a key and value head
            qh, kh, vh = q[:, head * K :][:, :K], k[:, shared * K :][:, :K], v[:, shared * K :][:, :K]
            if c.qk_norm:
                qh, kh = normalized(qh, "rms", c.norm_eps), normalized(kh, "rms", c.norm_eps)
            if c.positions == "rope":
                qh, kh = rotated(qh), rotated(kh)
            scores = qh @ kh.T * (usual if c.attention_scale is None else c.attention_scale)
            if c.attention_cap is not None:
                scores = c.attention_cap * np.tanh(scores / c.attention_cap)
            if c.positions == "alibi":
                scores = scores - 2 ** (-8 * (head + 1) / c.heads) * np.abs(back)
            heads.append((identity * np.eye(T) + weight * softmax(np.where(hidden, -np.inf, scores))) @ vh)
        return self.linear(p["o"], np.concatenate(heads, axis=1))

    def sublayer(self, carry: Carry, layer: int, n: int, s: float) -> Carry:
        """Returns the carry after the attention (n = 1) or the MLP (n = 2) of a block."""
        (x, memory), p, options = carry, self.blocks[layer], self.config.residual
        r = p.get("residual", {})

        def f(h: Array, **attention: Any) -> Array:
            return self.attention(p["attn"], h, **attention) if n == 1 else self.mlp(p["mlp"], h)

        def norm(h: Array, suffix: str = "") -> Array:
            return self.norm(p.get(f"norm_{n}{suffix}", {}), h)

        match options.rule:
            case "value_residual" if n == 1:
                h = norm(x)
                v = self.linear(p["attn"]["v"], h)
                memory = [v] if layer == 0 else memory
                x = s * x + f(h, values=v + r["lambda"] * (memory[0] - v))
            case "pre_ln" | "gpt2_scaled" | "stochastic_depth" | "value_residual":
                x = s * x + f(norm(x))
            case "value_skipinit" if n == 1:
                x = f(norm(x), identity=r["alpha"], weight=r["beta"])
            case "none" | "value_skipinit":
                x = f(norm(x))
            case "lns":
                x = s * x + f(norm(x) / np.sqrt(layer + 1))
            case "completep":
                x = s * x + f(norm(x)) * (options.base_layers or 2) / self.config.layers
            case "orthogonal":
                y = f(norm(x))
                x = s * x + y - (y * x).sum(1, keepdims=True) / (x * x).sum(1, keepdims=True) * x
            case "gpas":
                x = (s * x + f(norm(x))) * (1 - ACTIVATIONS["silu"](r["gate"]))
            case "siamese":
                u, y = norm(x[:, 0], "_post"), x[:, 1]
                branch = f(norm(u + norm(y, "_pre")))
                x = np.stack([s * u + branch / np.sqrt(2 * (layer + 1)), s * y + branch], axis=1)
            case "denseformer":
                x = s * x + f(norm(x))
                if n == 2:
                    memory, weights = [*memory, x], np.tile(r["alpha"], (len(x), 1))
                    if options.dynamic:
                        h = gelu(normalized(x, "rms", self.config.norm_eps) @ r["dynamic"]["hidden"])
                        weights = weights + h @ r["dynamic"]["out"]
                    x = np.einsum("tj,jtd->td", weights[:, : len(memory)], np.stack(memory))
            case "mix_ln" if layer + 0.5 >= (0.25 if options.share is None else options.share) * len(self.blocks):
                x = s * x + f(norm(x))
            case "post_ln" | "mix_ln":
                x = norm(s * x + f(x))
            case "keel":
                x = norm(s * (options.alpha or 2 * self.config.layers) * x + f(norm(x)), "_out")
            case "res_post_norm":
                x = s * x + norm(f(x), "_out")
            case "sandwich":
                x = s * x + norm(f(norm(x)), "_out")
            case "rezero":
                x = s * x + r[f"alpha_{n}"] * f(x)
            case "skipinit":
                x = s * x + r[f"alpha_{n}"] * f(norm(x))
            case "layerscale":
                x = s * x + r[f"lambda_{n}"] * f(norm(x))
            case "deepnorm":
                alpha = (2 * self.config.layers) ** 0.25 if options.alpha is None else options.alpha
                x = norm(s * alpha * x + f(x))
            case "highway":
                t = sigmoid(self.linear(r[f"gate_{n}"], x))
                x = t * f(norm(x)) + (1 - t) * x
            case "x0_lambda":
                x = r["lambda_0"] * x + r["lambda_1"] * memory[0] if n == 1 else x
                x = s * x + f(norm(x))
            case "attnres":
                y, size = f(norm(x)), 1 if options.block is None else 2 * options.block
                starts = (2 * layer + n - 1) % size == 0  # a block of sublayers, whose outputs are added up
                memory = [*memory, y] if starts else [*memory[:-1], memory[-1] + y]
                keys = [normalized(source, "rms", self.config.norm_eps) for source in memory]
                parts = []
                for columns in np.split(np.arange(self.config.width), options.heads or 1):
                    query = r[f"query_{n}"][columns]
                    weights = softmax(np.stack([key[:, columns] @ query for key in keys], axis=-1))
                    parts.append(np.einsum("ts,std->td", weights, np.stack(memory)[:, :, columns]))
                x = np.concatenate(parts, axis=1)
            case "hyper_connections" | "mhc":
                read, across, write = self.mixing(x, r, n)
                y = f(norm(np.einsum("tn,tnd->td", read, x)))
                x = s * across @ x + np.einsum("tn,td->tnd", write, y)
            case _:
                raise NotImplementedError(options.rule)
        return x, memory

    def mixing(self, x: Float[Array, "T n D"], r: Tree, n: int) -> tuple[Array, Array, Array]:
        """Returns a sublayer's matrices for each token: read [T, n], across [T, to, from] and write [T, n]."""
        (T, count, _), options, eps = x.shape, self.config.residual, self.config.norm_eps
        if options.rule == "hyper_connections":
            read, across, write = (r[f"{name}_{n}"] for name in ("read", "across", "write"))
            read, across, write = (np.stack([each] * T) for each in (read, across.T, write))
            if options.dynamic:
                h, parts = normalized(x, "rms", eps), [r[f"dynamic_{name}_{n}"] for name in ("read", "across", "write")]
                by_token = [part["scale"] * np.tanh(h @ part["kernel"]) for part in parts]
                read, write = read + by_token[0][..., 0], write + by_token[2][..., 0]
                across = across + np.swapaxes(by_token[1], 1, 2)
            return read, across, write
        h = normalized(x.reshape(T, -1), "rms", eps)
        parts = [r[f"{name}_{n}"] for name in ("read", "write", "across") if f"{name}_{n}" in r]
        read, write, *across = (part["gate"] * (h @ part["kernel"]) + part["bias"] for part in parts)
        if options.mixing == "identity":
            return sigmoid(read), np.stack([np.eye(count)] * T), 2 * sigmoid(write)
        (across,) = across
        if options.mixing in ("circulant", "lite"):
            orders = [[(i + k) % count for i in range(count)] for k in range(count)]  # stream i goes to i + k
            orders = [*permutations(range(count))] if options.mixing == "lite" else orders
            across = np.einsum("tp,pij->tji", softmax(across), np.eye(count)[np.array(orders)])
            return sigmoid(read), across, 2 * sigmoid(write)
        across = np.exp(across.reshape(T, count, count))
        for _ in range(options.rounds or 20):  # Sinkhorn: columns, then rows, add up to 1
            across = across / across.sum(axis=1, keepdims=True)
            across = across / across.sum(axis=2, keepdims=True)
        return sigmoid(read), across, 2 * sigmoid(write)

    def streams(self, tokens: Int[Array, "T"], s: float = 1.0) -> Float[Array, "L+1 T ..."]:
        """Returns the stream at every depth."""
        x, options = self.params["embed"][tokens], self.config.residual
        if self.config.positions == "learned":
            x = x + self.params["positions"][: len(tokens)]
        if self.config.positions == "sinusoidal":
            x = x + waves(*x.shape)
        count = {"hyper_connections": options.streams or 4, "mhc": options.streams or 4, "siamese": 2}
        several = options.rule in count
        carries: list[Carry] = [(np.stack([x] * count[options.rule], axis=1) if several else x, [x])]
        for layer in range(self.config.layers):
            attended = self.sublayer(carries[-1], layer, 1, s)
            carries.append(self.sublayer(attended, layer, 2, s))
        return np.stack([x for x, _ in carries])

    def normed(self, x: Float[Array, "T ..."]) -> Float[Array, "T D"]:
        """Returns what the head reads, from the last stream: its sum, where there are several, after the final norm."""
        rule, kind = self.config.residual.rule, self.config.norm
        if rule == "siamese" and kind != "none":
            x = normalized(x, kind, self.config.norm_eps)
        x = x.sum(axis=1) if x.ndim == 3 else x
        post_norm = rule in ("post_ln", "deepnorm", "keel")
        return x if post_norm else self.norm(self.params.get("norm_f", {}), x)

    def logits(self, tokens: Int[Array, "B T"], s: float = 1.0) -> Float[Array, "B*T V"]:
        c = self.config
        logits = np.concatenate([self.normed(self.streams(sequence, s)[-1]) for sequence in tokens]) @ self.table.T
        logits = logits if c.base_width is None else logits * c.base_width / c.width
        return logits if c.logit_cap is None else c.logit_cap * np.tanh(logits / c.logit_cap)
