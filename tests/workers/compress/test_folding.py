"""Scales move out of linears into what comes before: found without a table, proven, exact, undone where it fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.workers.compress.layer_jobs import IDS, TinyJob
from tests.workers.tiny import save_tiny_model
from workers.checkpoint.headers import read_headers
from workers.compress import layer_folds
from workers.compress.fold_search import FoldFinder
from workers.compress.folding import FoldSite, LayerStorage, fold, round_changed
from workers.compress.walk import LayerWalk
from workers.protocol.recipes import AwqRecipe, Override

AWQ = AwqRecipe(num_bits=8, group_size=32)
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj")
EXPERTS = tuple(f"mlp.experts.{number}.{part}" for number in range(4) for part in ("gate_proj", "up_proj"))
DOWN = {("mlp.down_proj",): "mlp.up_proj"}

# model_type -> its config, and what is to be found: readers -> predecessor.
FOUND: dict[str, tuple[str, dict[str, Any], dict[tuple[str, ...], str]]] = {
    "llama-gqa": ("llama", {}, {QKV: "input_layernorm", MLP: "post_attention_layernorm", **DOWN}),
    "llama-mha": (
        "llama",
        {"num_key_value_heads": 4},
        {
            QKV: "input_layernorm",
            ("self_attn.o_proj",): "self_attn.v_proj",
            MLP: "post_attention_layernorm",
            **DOWN,
        },
    ),
    "gemma2": (
        "gemma2",
        {"num_key_value_heads": 2, "head_dim": 16},
        {QKV: "input_layernorm", MLP: "pre_feedforward_layernorm", **DOWN},
    ),
    # Norms behind the products, not before them.
    "olmo2": ("olmo2", {"num_key_value_heads": 2}, DOWN),
    "gpt-neox": (
        "gpt_neox",
        {},
        {
            ("attention.query_key_value",): "input_layernorm",
            ("mlp.dense_h_to_4h",): "post_attention_layernorm",
        },
    ),
    # A ReLU lets factors through.
    "opt": (
        "opt",
        {"word_embed_proj_dim": 64, "ffn_dim": 96},
        {
            QKV: "self_attn_layer_norm",
            ("self_attn.out_proj",): "self_attn.v_proj",
            ("fc1",): "final_layer_norm",
            ("fc2",): "fc1",
        },
    ),
    # Attention and the feed-forward part read one norm.
    "phi": ("phi", {"num_key_value_heads": 2}, {(*QKV, "mlp.fc1"): "input_layernorm"}),
    # Gate and up are one linear, and so are queries, keys and values.
    "phi3": (
        "phi3",
        {"num_key_value_heads": 4, "pad_token_id": 0},
        {
            ("self_attn.qkv_proj",): "input_layernorm",
            ("self_attn.o_proj",): "self_attn.qkv_proj",
            ("mlp.gate_up_proj",): "post_attention_layernorm",
            ("mlp.down_proj",): "mlp.gate_up_proj",
        },
    ),
    "mixtral": (
        "mixtral",
        {},
        {
            QKV: "input_layernorm",
            ("mlp.gate", *EXPERTS): "post_attention_layernorm",
            **{(f"mlp.experts.{number}.down_proj",): f"mlp.experts.{number}.up_proj" for number in range(4)},
        },
    ),
}


def save_model(folder: Path, model_type: str, **options: Any) -> Path:
    """A tiny model whose norms and biases are no longer ones and zeros."""
    base = save_tiny_model(folder, model_type, **options)
    tensors = load_file(base / "model.safetensors")
    chance = torch.Generator().manual_seed(11)
    for name, tensor in tensors.items():
        if tensor.dim() == 1:
            tensors[name] = (tensor + 0.3 * torch.randn(tensor.shape, generator=chance)).to(tensor.dtype)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    return base


class OneLayer:
    """The first layer of a walked model, with memory, and its first sample."""

    def __init__(self, walk: LayerWalk, hidden: Tensor) -> None:
        self.walk = walk
        self.layer: nn.Module = walk.layers[0]
        self.hidden = hidden

    def run(self) -> Tensor:
        return self.walk.run(0, self.hidden)

    def sites(self, finder: FoldFinder | None = None) -> list[FoldSite]:
        linears = [name for name, module in self.layer.named_modules() if type(module) is nn.Linear]
        return (finder or FoldFinder()).find(self.layer, linears, self.hidden, self.run)

    def storage(self, targets: frozenset[str] | None = None) -> LayerStorage:
        def dtype_of(name: str) -> torch.dtype | None:
            stored = self.walk.stored_as(f"{self.walk.path}.0.{name}")
            return None if stored is None else stored[1]

        linears = {name for name, module in self.layer.named_modules() if type(module) is nn.Linear}
        return LayerStorage(dtype_of=dtype_of, targets=frozenset(linears) if targets is None else targets)


@contextmanager
def first_layer(base: Path) -> Iterator[OneLayer]:
    walk = LayerWalk(base, read_headers(base), torch.device("cpu"))
    hidden = next(walk.embed(IDS))
    with walk.layer(0):
        yield OneLayer(walk, hidden)


def random_factors(width: int, seed: int) -> Tensor:
    return torch.exp(torch.randn(width, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize(("model_type", "options", "expected"), FOUND.values(), ids=FOUND.keys())
def test_what_takes_scales_is_found_and_nothing_is_changed_by_looking(
    tmp_path: Path, model_type: str, options: dict[str, Any], expected: dict[tuple[str, ...], str]
) -> None:
    with first_layer(save_model(tmp_path / "base", model_type, **options)) as one:
        before = {name: parameter.clone() for name, parameter in one.layer.named_parameters()}

        sites = one.sites()

        found = {frozenset(site.readers): site.predecessor for site in sites}
        assert found == {frozenset(readers): name for readers, name in expected.items()}
        assert all(torch.equal(parameter, before[name]) for name, parameter in one.layer.named_parameters())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in one.layer.modules())


@pytest.mark.parametrize(
    ("model_type", "options"),
    [(model_type, options) for model_type, options, _ in FOUND.values()],
    ids=FOUND.keys(),
)
def test_folded_layer_computes_the_same(tmp_path: Path, model_type: str, options: dict[str, Any]) -> None:
    base = save_model(tmp_path / "base", model_type, dtype=torch.float32, **options)
    with first_layer(base) as one:
        exact = one.run()

        sites = one.sites()
        for number, site in enumerate(sites):
            width = one.layer.get_parameter(f"{site.readers[0]}.weight").shape[1]
            fold(one.layer, site, random_factors(width, number), one.storage())
            round_changed(one.layer, site, one.storage())

        assert sites
        # Products of up to 96 terms, each rounded twice more, factors of up to e**3: a few hundred of 2**-24.
        torch.testing.assert_close(one.run(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_norm_stored_in_bf16_is_rounded_without_an_error(tmp_path: Path, model_type: str) -> None:
    options = FOUND[model_type][1] if model_type in FOUND else {}
    with first_layer(save_model(tmp_path / "base", model_type, dtype=torch.bfloat16, **options)) as one:
        exact = one.run()
        site = next(site for site in one.sites() if site.predecessor == "input_layernorm")
        wanted = random_factors(64, 3)

        used = fold(one.layer, site, wanted, one.storage())
        changed = round_changed(one.layer, site, one.storage())

        assert changed.keys() == {"input_layernorm.weight"}
        assert changed["input_layernorm.weight"].dtype is torch.bfloat16
        # bf16 holds 8 digits; Gemma's 1 + w loses some of them where w is near -1.
        assert ((used / wanted).log().abs() < 0.05).double().mean() > 0.9
        assert not torch.equal(used, wanted)
        torch.testing.assert_close(one.run(), exact, rtol=1e-4, atol=1e-5)


def test_bias_stored_in_bf16_is_rounded_and_the_layer_computes_with_it(tmp_path: Path) -> None:
    with first_layer(save_model(tmp_path / "base", "gpt_neox", dtype=torch.bfloat16)) as one:
        exact = one.run()
        site = next(site for site in one.sites() if site.predecessor == "input_layernorm")

        fold(one.layer, site, random_factors(64, 3), one.storage())
        changed = round_changed(one.layer, site, one.storage())

        assert changed.keys() == {"input_layernorm.weight", "input_layernorm.bias"}
        assert all(torch.equal(one.layer.get_parameter(name), values.float()) for name, values in changed.items())
        # 2**-9 of the biases, a third of the norm's outputs.
        assert (one.run() - exact).norm() < 2**-9 * (exact - one.hidden).norm()


def test_channel_that_cannot_be_divided_keeps_its_weight() -> None:
    layer = nn.Sequential(nn.RMSNorm(4), nn.Linear(4, 3, bias=False))
    with torch.no_grad():
        layer[0].weight.copy_(torch.tensor([2.0, 0.0, 6e4, 1e-7]))
    site = FoldSite(predecessor="0", kind="norm", readers=("1",))
    storage = LayerStorage(dtype_of=lambda _: torch.float16, targets=frozenset({"1"}))

    used = fold(layer, site, torch.tensor([4.0, 4.0, 0.25, 1e4]), storage)

    # Divided exactly; zero whatever it is divided by; would overflow fp16; would vanish in fp16.
    torch.testing.assert_close(used, torch.tensor([4.0, 4.0, 1.0, 1.0]))
    torch.testing.assert_close(layer[0].weight, nn.Parameter(torch.tensor([0.5, 0.0, 6e4, 1e-7])))


class Readers(nn.Module):
    """A norm whose output something else may read too: a residual, or a linear inside a module of its own."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.norm = nn.RMSNorm(16)
        self.first, self.second = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        read = self.norm(hidden)
        if self.kind == "residual":
            return read + self.first(read)
        if self.kind == "nonlinear":
            return hidden + self.first(read.tanh()) + self.second(read)
        return hidden + self.first(read) + self.second(read.reshape(-1, 16)).reshape(hidden.shape)


@pytest.mark.parametrize(("kind", "is_found"), [("residual", False), ("nonlinear", False), ("view", True)])
def test_factors_are_taken_only_where_every_reader_can_be_scaled(kind: str, is_found: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        layer = Readers(kind).requires_grad_(False)
        hidden = torch.randn(1, 10, 16)

    sites = FoldFinder().find(layer, ["first"], hidden, lambda: layer(hidden))

    expected = [FoldSite(predecessor="norm", kind="norm", readers=("first", "second"))]
    assert sites == (expected if is_found else [])


def test_layer_of_known_structure_is_proven_for_itself() -> None:
    finder, hidden = FoldFinder(), torch.randn(1, 10, 16, generator=torch.Generator().manual_seed(1))
    good, bad = Readers("view").requires_grad_(False), Readers("residual").requires_grad_(False)

    first = finder.find(good, ["first"], hidden, lambda: good(hidden))
    second = finder.find(bad, ["first"], hidden, lambda: bad(hidden))

    assert [len(first), len(second)] == [1, 0]


def test_expert_that_no_token_reaches_is_scaled_as_its_like(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", "mixtral", num_local_experts=32, num_experts_per_tok=1)
    with first_layer(base) as one:
        reached: set[str] = set()
        for name, module in one.layer.named_modules():
            if name.endswith("up_proj"):
                module.register_forward_pre_hook(lambda *_, name=name: reached.add(name))

        sites = {site.predecessor: site for site in one.sites()}

        assert 0 < len(reached) < 32
        norm = sites["post_attention_layernorm"]
        assert sum(reader.endswith("up_proj") for reader in norm.readers) == 32
        assert {f"mlp.experts.{number}.up_proj" for number in range(32)} <= sites.keys()
        assert sites["mlp.experts.3.up_proj"].readers == ("mlp.experts.3.down_proj",)


def test_uncompressed_readers_are_scaled_along_and_stored(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", "mixtral", dtype=torch.bfloat16)
    stored = load_file(base / "model.safetensors")

    staged = TinyJob(
        base=base,
        folder=tmp_path / "layers",
        recipe=AWQ,
        layout="pack-quantized",
        overrides=(Override(pattern="*.q_proj", recipe=None),),
    ).run()

    tensors = staged.tensors(0)
    changed = {name for name in tensors if name in stored and tensors[name].shape == stored[name].shape}
    prefix = "model.layers.0."
    assert {name.removeprefix(prefix) for name in changed} == {
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
        "self_attn.q_proj.weight",
        # As the files call it, not as transformers does.
        "block_sparse_moe.gate.weight",
    }
    assert all(tensors[name].dtype is torch.bfloat16 for name in changed)
    note = staged.notes[0]["note"]
    # The uncompressed one too.
    assert set(note["folds"][f"{prefix}input_layernorm"]) == {f"{prefix}self_attn.{name}_proj" for name in "qkv"}
    assert note["folds"][f"{prefix}mlp.experts.2.up_proj"] == [f"{prefix}mlp.experts.2.down_proj"]
    assert note["unfolded"][f"{prefix}self_attn.o_proj"] == "nothing before it can take its scales"


def test_layer_that_would_compute_something_else_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_model(tmp_path / "base", "llama")

    def wrong(layer: nn.Module, site: FoldSite, factors: Tensor, storage: LayerStorage) -> Tensor:
        used = fold(layer, site, factors, storage)
        with torch.no_grad():
            layer.get_parameter(f"{site.readers[-1]}.weight").mul_(1.1)
        return used

    monkeypatch.setattr(layer_folds, "fold", wrong)
    staged = TinyJob(base=base, folder=tmp_path / "layers", recipe=AWQ, layout="pack-quantized").run()

    note = staged.notes[0]["note"]
    assert not note["folds"]
    assert note["unfolded"]["model.layers.0.self_attn.q_proj"] == "with scales the layer did not compute the same"
    assert not any("norm" in name for name in staged.tensors(0))
    # Rounding of the untouched weights: 8 bits in groups of 32 lose half a percent.
    assert all(after < 0.01 for _, after in note["errors"].values())
