"""A plain GPT in PyTorch, trained in nanoGPT's manner: fused AdamW, fused causal attention, eager or compiled."""

import contextlib
import math

import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional as F  # pyright: ignore[reportMissingImports]

from .contestant import (
    BETAS,
    CLIP,
    INIT_STD,
    LEARNING_RATE,
    NORM_EPS,
    WEIGHT_DECAY,
    Contestant,
    Corpus,
    Shapes,
    facts,
    one_step_a_call,
)


class Block(nn.Module):
    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        width = shapes.width
        self.heads = shapes.heads
        self.norm_1 = nn.LayerNorm(width, eps=NORM_EPS, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm_2 = nn.LayerNorm(width, eps=NORM_EPS, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x):
        batch, context, width = x.shape
        q, k, v = self.qkv(self.norm_1(x)).split(width, dim=2)
        q, k, v = (a.view(batch, context, self.heads, width // self.heads).transpose(1, 2) for a in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, context, width))
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.embed = nn.Embedding(shapes.vocab, shapes.width)
        self.positions = nn.Embedding(shapes.context, shapes.width)
        self.blocks = nn.ModuleList(Block(shapes) for _ in range(shapes.layers))
        self.norm = nn.LayerNorm(shapes.width, eps=NORM_EPS, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                small = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=INIT_STD / math.sqrt(2 * shapes.layers) if small else INIT_STD)

    def forward(self, x, y):
        """Mean cross-entropy in nats; x and y are int64 [B, T]."""
        h = self.embed(x) + self.positions(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            h = block(h)
        logits = F.linear(self.norm(h), self.embed.weight)
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())


class Trainer:
    """The training state; a call does one step on a fresh batch and returns its loss."""

    def __init__(self, shapes: Shapes, dtype: str = "float32", compile: bool = False, seed: int = 0) -> None:
        torch.manual_seed(seed)
        torch.set_float32_matmul_precision("high")  # TF32 on a GPU, which is JAX's default there too
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = GPT(shapes).to(self.device)
        self._loss = torch.compile(self.model) if compile else self.model
        self._optimizer = self._adamw()
        self._corpus = Corpus(shapes, seed)
        self._bfloat16 = dtype == "bfloat16"

    def _adamw(self):
        matrices = [p for p in self.model.parameters() if p.dim() >= 2]
        gains = [p for p in self.model.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": gains, "weight_decay": 0.0}]
        try:
            return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, fused=True)
        except RuntimeError:  # no fused kernel for this device
            return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS)

    def _to_device(self, tokens):
        tensor = torch.from_numpy(tokens).long()
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor

    def __call__(self):
        x, y = (self._to_device(a) for a in self._corpus.batch())
        autocast = torch.autocast(self.device.type, torch.bfloat16) if self._bfloat16 else contextlib.nullcontext()
        with autocast:
            loss = self._loss(x, y)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def contestant(shapes: Shapes, dtype: str, compile: bool) -> Contestant:
    stated = facts("torch", dtype, shapes)
    trainer = Trainer(shapes, stated.dtype, compile)
    wait = torch.cuda.synchronize if trainer.device.type == "cuda" else lambda: None
    return Contestant(one_step_a_call(trainer, wait), stated)
