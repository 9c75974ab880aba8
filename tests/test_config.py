from __future__ import annotations

import json

import pytest

from clue_jax import ModelConfig
from clue_jax.config import PRESETS
from clue_jax.errors import UserError

# CLUECorpus2020 and the published bert_config.json files.
SIZES = {
    "tiny": (4, 312, 1248, 12),
    "tiny3l312": (3, 312, 1248, 12),
    "tiny3l768": (3, 768, 3072, 12),
    "base": (12, 768, 3072, 12),
    "large": (24, 1024, 4096, 16),
}


def test_presets_have_the_published_sizes():
    assert set(PRESETS) == set(SIZES)
    for name, config in PRESETS.items():
        assert SIZES[name] == (
            config.num_hidden_layers,
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads,
        )
        assert config.vocab_size == 8021
        assert config.hidden_act == "gelu_tanh"


def test_gelu_is_named_by_dialect(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**PRESETS["tiny"].to_hugging_face(), "hidden_act": "gelu"}))
    assert ModelConfig.from_tf_bert(path).hidden_act == "gelu_tanh"
    assert ModelConfig.from_hugging_face(path).hidden_act == "gelu_erf"
    assert PRESETS["tiny"].to_tf_bert()["hidden_act"] == "gelu"
    assert PRESETS["tiny"].to_hugging_face()["hidden_act"] == "gelu_new"


def test_published_file_comes_back_with_its_unknown_keys(shared, tmp_path):
    source = shared / "data/configs/RoBERTa-tiny-clue.bert_config.json"
    config = ModelConfig.from_tf_bert(source)
    assert config == PRESETS["tiny"]
    config.save_tf_bert(tmp_path / "bert_config.json")
    assert json.loads((tmp_path / "bert_config.json").read_text()) == json.loads(source.read_text())


def test_unknown_keys_survive_both_dialects(tmp_path):
    values = {**PRESETS["tiny"].to_hugging_face(), "pooler_type": "x", "model_type": "roberta"}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    config = ModelConfig.from_hugging_face(path)
    assert config.to_hugging_face()["pooler_type"] == "x"
    assert config.to_hugging_face()["model_type"] == "bert"
    assert config.to_tf_bert()["pooler_type"] == "x"
    assert "model_type" not in config.to_tf_bert()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "swish"}, "unknown hidden_act 'swish'"),
        ({"hidden_size": 100}, "not a multiple of num_attention_heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number"),
        ({"vocab_size": 1.5}, "vocab_size must be a whole number"),
        ({"hidden_dropout_prob": 1}, "hidden_dropout_prob must be in"),
        ({"layer_norm_eps": 0}, "layer_norm_eps must be positive"),
        ({"initializer_range": "x"}, "initializer_range must be a number"),
    ],
)
def test_impossible_values_are_refused_with_the_file(tmp_path, changes, message):
    path = tmp_path / "bert_config.json"
    path.write_text(json.dumps({**PRESETS["tiny"].to_tf_bert(), **changes}))
    with pytest.raises(UserError, match=message) as error:
        ModelConfig.from_tf_bert(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: not valid JSON"),
        ("[1]", "expected a JSON object"),
        ("{}", "missing vocab_size"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        ModelConfig.from_hugging_face(path)
