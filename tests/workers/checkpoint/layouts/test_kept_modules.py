"""Names of kept modules, judged as the libraries look them up."""

import re

from workers.checkpoint.layouts import kept_modules

KEPT = ["lm_head", "model.layers.0.mlp.gate", "model.layers.1.mlp.gate", "model.layers.1.mlp.experts.2.up_proj"]
COMPRESSED = [
    "model.layers.0.mlp.gate_proj",
    "model.layers.1.mlp.gate_proj",
    "model.layers.1.mlp.experts.12.up_proj",
    "model.layers.1.self_attn.q_proj",
]


def test_patterns_match_what_is_kept_and_nothing_that_is_compressed() -> None:
    named = kept_modules.patterns(KEPT, COMPRESSED)

    assert named == [
        "lm_head",
        r"re:model\.layers\.1\.mlp\.experts\.2\.up_proj$",
        r"re:model\.layers\.\d+\.mlp\.gate$",
    ]
    # as compressed-tensors and transformers ask: from the start of the name
    for pattern in kept_modules.bare(named):
        assert any(re.match(pattern, name) for name in KEPT)
        assert not any(re.match(pattern, name) for name in COMPRESSED)


def test_endings_tell_compressed_modules_from_kept_ones() -> None:
    found = kept_modules.endings(COMPRESSED, [*KEPT, "model.layers.0.self_attn.q_proj"])

    # as transformers asks: by the end of the name
    assert all(any(name.endswith(ending) for ending in found) for name in COMPRESSED)
    assert not any(name.endswith(ending) for ending in found for name in [*KEPT, "model.layers.0.self_attn.q_proj"])
    assert "mlp.gate_proj" in found
    assert "model.layers.1.self_attn.q_proj" in found
