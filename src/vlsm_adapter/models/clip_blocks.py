"""CLIP's transformer (Radford et al., ICML 2021): attention, residual block and text tower, as CRIS and SAN use them.

Every weight stands in a small module that is *called*, so that a method can stand in its place or behind it: adapters
behind ``attn.out_proj`` and ``mlp.c_proj``, LoRA on the projections, copies for full fine-tuning. OpenAI's files differ
in two kinds of names, which :func:`from_openai_names` and :func:`to_openai_names` translate:

- ``attn.in_proj_weight`` and ``attn.in_proj_bias`` hold the rows of ``q_proj``, ``k_proj`` and ``v_proj``, stacked;
- a bare tensor (``positional_embedding``, ``text_projection``) is the ``weight`` of a module of that name here.

Tensor shapes follow the legend in :mod:`vlsm_adapter.types`; D is the width, S the tokens attended to.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import nn
from torch.nn import functional as F

from vlsm_adapter.errors import ModelError
from vlsm_adapter.models.fused_mlp import quick_gelu_mlp
from vlsm_adapter.models.prompt_tokens import Insertion

# Sites of a residual block and their modules, in the order of the computation.
BLOCK_SITES = (
    ("query", "attn.q_proj"),
    ("key", "attn.k_proj"),
    ("value", "attn.v_proj"),
    ("attn_out", "attn.out_proj"),
    ("mlp_in", "mlp.c_fc"),
    ("mlp_out", "mlp.c_proj"),
)
_PARTS = ("q_proj", "k_proj", "v_proj")
_STACKED = {"in_proj_weight": "weight", "in_proj_bias": "bias"}


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), of any shape: OpenAI's approximation of GELU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head attention with biases, batch first (Vaswani et al., 2017).

    Args:
        width: D of queries, keys, values and output.
        heads: divides ``width``; a head takes consecutive channels.
        dropout: share of attention weights dropped in training mode.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor | None = None,
        value: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend from ``query`` (B, L, D) to ``key`` and ``value`` (B, S, D); both are ``query`` by default.

        Args:
            mask: broadcast to (B, heads, L, S): bool, True where a query may look, or a float that is added to the
                scaled products.

        Returns:
            (B, L, D).
        """
        key = query if key is None else key
        value = key if value is None else value
        q, k, v = self._split(self.q_proj(query)), self._split(self.k_proj(key)), self._split(self.v_proj(value))
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        joined: torch.Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return joined

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, D) to (B, heads, L, D / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class MLP(nn.Module):
    """The two linear maps of a block, four times as wide in between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.gelu = QuickGELU()
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., D) to (..., D)."""
        return quick_gelu_mlp(self.c_fc, self.c_proj, x, self.gelu)


class ResidualBlock(nn.Module):
    """x + attention(LN x), then x + MLP(LN x): CLIP's transformer block.

    Args:
        width: D.
        heads: of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, L, D) to (B, L, D); ``mask`` as in :class:`Attention`."""
        x = x + self.attn(self.ln_1(x), mask=mask)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of residual blocks."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualBlock(width, heads) for _ in range(layers))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, L, D) to (B, L, D); ``mask`` as in :class:`Attention`."""
        for block in self.resblocks:
            x = block(x, mask)
        return x


class PositionTable(nn.Module):
    """Learned positions, ``weight`` (rows, D), added to tokens (B, L, D) with L up to the number of rows."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width).normal_(std=0.01))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight[: x.shape[1]]


class Projection(nn.Module):
    """A linear map without bias whose ``weight`` (D, E) is stored transposed: x (..., D) to x . weight (..., E)."""

    def __init__(self, width: int, embed_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, embed_dim).normal_(std=width**-0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


class TextTower(nn.Module):
    """CLIP's text encoder.

    A causal mask, no padding mask: padding follows the end token and cannot change any state up to it.

    Args:
        vocab_size: rows of the token table.
        context_length: rows of the position table, the most tokens of a prompt.
        width, heads, layers: of the transformer.
        embed_dim: E of the projected state.
    """

    def __init__(
        self, *, vocab_size: int, context_length: int, width: int, heads: int, layers: int, embed_dim: int
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = PositionTable(context_length, width)
        self.transformer = Transformer(width, heads, layers)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = Projection(width, embed_dim)

    def forward(
        self, input_ids: torch.Tensor, token_sites: nn.ModuleList | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Words and state of prompts int64 (P, L); the end token is the first of the largest id in a row.

        Args:
            token_sites: one per block, see :mod:`.prompt_tokens`; with learned words there are L + M words.

        Returns:
            All states after the last norm (P, L, D), and the projected one at the end token (P, E), not normalised.

        Raises:
            ModelError: L is more than the position table has rows, or an id is not in the token table.
        """
        words, end = self.encode(input_ids, token_sites)
        return words, self.text_projection(words[torch.arange(words.shape[0], device=words.device), end])

    def encode(
        self, input_ids: torch.Tensor, token_sites: nn.ModuleList | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`forward`, with the position (P,) of the end token in place of the projected state."""
        rows, context = self._rows(self.token_embedding), self._rows(self.positional_embedding)
        length = input_ids.shape[1]
        if not 1 <= length <= context:
            raise ModelError(f"prompts of {length} tokens: the model reads 1 to {context}; shorten them")
        asks = input_ids.device.type == "cpu" and not torch.compiler.is_compiling()  # a traced graph asks no values
        if asks and not 0 <= int(input_ids.min()) <= int(input_ids.max()) < rows:
            raise ModelError(
                f"token ids from {int(input_ids.min())} to {int(input_ids.max())}: the model knows 0 to {rows - 1}; "
                "use the tokenizer it was trained with"
            )
        x, end = self.token_embedding(input_ids), end_of_text(input_ids)
        insertion: Insertion | None = None
        learned: torch.Tensor = x[:, :0] if token_sites is None else token_sites[0](x[:, :0])
        if learned.shape[1]:
            length = _length_beside(learned.shape[1], length, end, context)
            insertion = Insertion(learned, length, None)
            x, end = insertion.words(x[:, :length]), end + insertion.count
        x = self.positional_embedding(x)
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        for number, block in enumerate(self.transformer.resblocks):
            if insertion is not None and token_sites is not None and number:
                x = insertion.update(x, token_sites[number])
            x = block(x, causal)
        return self.ln_final(x), end

    @staticmethod
    def _rows(table: nn.Module) -> int:
        """Rows of a table, also where an adapter stands in its place."""
        weight = getattr(table, "base_layer", table).weight
        assert isinstance(weight, torch.Tensor)
        return weight.shape[0]


def end_of_text(input_ids: torch.Tensor) -> torch.Tensor:
    """Position (P,) of the end token of prompts (P, L): the first of the largest id."""
    return input_ids.argmax(dim=1)


def _length_beside(learned: int, length: int, end: torch.Tensor, context: int) -> int:
    """How many columns of prompts (P, L) to read beside learned tokens: all, or where they do not fit, to the last end.

    Raises:
        ModelError: a prompt itself does not fit.
    """
    if length + learned <= context:
        return length
    needed = int(end.max()) + 1  # what follows the end of every prompt is padding
    if needed + learned > context:
        raise ModelError(
            f"prompt of {needed} tokens beside {learned} learned ones: the model reads {context}, so at most "
            f"{context - learned} are left, start and end included; shorten the prompt, or pass it through tokenize"
        )
    return needed


def from_openai_names(tensors: Mapping[str, torch.Tensor], bare: Collection[str]) -> dict[str, torch.Tensor]:
    """Tensors under OpenAI's names, under the names here; nothing is copied.

    Args:
        tensors: by name.
        bare: whole names of the tensors that are the ``weight`` of a module here.
    """
    named: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if kind in _STACKED and tensor.ndim and tensor.shape[0] % 3 == 0:
            for part, rows in zip(_PARTS, tensor.chunk(3), strict=True):
                named[f"{module}.{part}.{_STACKED[kind]}"] = rows
        else:
            named[f"{name}.weight" if name in bare else name] = tensor
    return named


def to_openai_names(tensors: Mapping[str, torch.Tensor], bare: Collection[str]) -> dict[str, torch.Tensor]:
    """The inverse of :func:`from_openai_names`: three projections of an attention with ``out_proj`` are stacked."""
    stacked: dict[str, torch.Tensor] = {}
    bare_here = {f"{name}.weight" for name in bare}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        attention, _, part = module.rpartition(".")
        if part in _PARTS and f"{attention}.out_proj.weight" in tensors:
            if part == _PARTS[0]:
                rows = [tensors[f"{attention}.{each}.{kind}"] for each in _PARTS]
                stacked[f"{attention}.in_proj_{kind}"] = torch.cat(rows)
        else:
            stacked[name.removesuffix(".weight") if name in bare_here else name] = tensor
    return stacked
