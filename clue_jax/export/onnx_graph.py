"""The model as an ONNX graph, written operation by operation as `clue_jax.model` computes it.

Every operation is a standard one of opset 20; batch and length are free. Kernels stay constants
right before their products, where onnxruntime fuses and quantises them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from clue_jax.config import ModelConfig
from clue_jax.convert.merge import flatten
from clue_jax.errors import UserError
from clue_jax.export.function import INPUTS
from clue_jax.model.layers import MASK_BIAS

OPSET = 20  # the first with Gelu
_IR = 10
LARGEST = 2**31 - 2**20  # bytes of all constants
_OUTPUTS = {
    "spans": (("start_logits", ("batch", "length")), ("end_logits", ("batch", "length"))),
    "entities": (("logits", ("batch", "length", "classes")),),
    "fill-mask": (("logits", ("batch", "length", "vocabulary")),),
    "embedding": (("sentence_embedding", ("batch", "hidden")),),
}
_LABELS = (("logits", ("batch", "classes")),)


class _Graph:
    """Nodes and constants so far."""

    def __init__(self, params: dict[str, Any]):
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._params = {
            path: np.asarray(array, np.float32) for path, array in flatten(params).items()
        }

    def __call__(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds an operation; gives the name of its output."""
        output = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def weight(self, path: str) -> str:
        """A parameter."""
        if path not in self.constants:
            self.constants[path] = numpy_helper.from_array(self._params[path], path)
        return path

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """A number, or a list of numbers."""
        name = f"{np.dtype(dtype).name}_{value}".replace(" ", "")
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(value, dtype), name)
        return name

    def dense(self, x: str, path: str) -> str:
        """A fully connected layer."""
        product = self("MatMul", x, self.weight(f"{path}/kernel"))
        return self("Add", product, self.weight(f"{path}/bias"))

    def norm(self, x: str, path: str, config: ModelConfig) -> str:
        """LayerNorm over the last dimension."""
        scale, bias = self.weight(f"{path}/scale"), self.weight(f"{path}/bias")
        epsilon = config.layer_norm_eps
        return self("LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon)

    def activation(self, x: str, name: str) -> str:
        """One of `clue_jax.model.layers.ACTIVATIONS`."""
        if name in ("gelu_tanh", "gelu_erf"):
            return self("Gelu", x, approximate="tanh" if name == "gelu_tanh" else "none")
        return x if name == "linear" else self({"relu": "Relu", "tanh": "Tanh"}[name], x)


def graph(params: dict[str, Any], config: ModelConfig, kind: str) -> onnx.ModelProto:
    """The graph of a kind of prediction; see `clue_jax.export.function.exported`.

    Args:
      params: of `clue_jax.export.function.params_of`.
      config: the sizes.
      kind: of prediction.

    Raises:
      UserError: for a model of 2 GB or more, which one ONNX file cannot hold.
    """
    g = _Graph(params)
    mask = g("Cast", "attention_mask", to=TensorProto.FLOAT)
    hidden = _encoder(g, config, _embeddings(g, config), mask)
    if kind == "spans":
        scores = g("Transpose", g.dense(hidden, "span"), perm=[0, 2, 1])  # [B, 2, T]
        real = g("Cast", g("Unsqueeze", "attention_mask", i64(g, [1])), to=TensorProto.BOOL)
        scores = g("Where", real, scores, g.constant(MASK_BIAS))
        found = [g("Gather", scores, g.constant(i, np.int64), axis=1) for i in (0, 1)]
    elif kind == "entities":
        found = [g.dense(hidden, "classifier")]
    elif kind == "fill-mask":
        found = [_vocabulary(g, config, hidden)]
    elif kind == "embedding":
        weights = g("Unsqueeze", mask, i64(g, [2]))
        total = g("ReduceSum", g("Mul", hidden, weights), i64(g, [1]), keepdims=0)
        found = [g("Div", total, g("ReduceSum", weights, i64(g, [1]), keepdims=0))]
    else:
        first = g("Gather", hidden, g.constant(0, np.int64), axis=1)
        found = [g.dense(g("Tanh", g.dense(first, "bert/pooler")), "classifier")]
    outputs = _OUTPUTS.get(kind, _LABELS)
    for (name, _), output in zip(outputs, found, strict=True):
        g.nodes.append(helper.make_node("Identity", [output], [name], name=name))
    return _model(g, config, outputs)


def i64(g: _Graph, values: list[int]) -> str:
    """Whole numbers, as shapes and axes are."""
    return g.constant(values, np.int64)


def _embeddings(g: _Graph, config: ModelConfig) -> str:
    at = "bert/embeddings"
    most = [g.constant(n - 1, np.int64) for n in (config.vocab_size, config.type_vocab_size)]
    zero = g.constant(0, np.int64)
    words, kinds = (
        g("Clip", name, zero, top)
        for name, top in zip(("input_ids", "token_type_ids"), most, strict=True)
    )
    length = g("Shape", "input_ids", start=1, end=2)
    positions = g("Slice", g.weight(f"{at}/position_embeddings"), i64(g, [0]), length, i64(g, [0]))
    x = g("Gather", g.weight(f"{at}/word_embeddings"), words, axis=0)
    x = g("Add", x, g("Gather", g.weight(f"{at}/token_type_embeddings"), kinds, axis=0))
    return g.norm(g("Add", x, positions), f"{at}/layer_norm", config)


def _encoder(g: _Graph, config: ModelConfig, x: str, mask: str) -> str:
    heads, size = config.num_attention_heads, config.head_size
    split = i64(g, [0, 0, heads, size])  # 0 keeps a dimension
    join = i64(g, [0, 0, config.hidden_size])
    padding = g("Cast", g("Equal", mask, g.constant(0.0)), to=TensorProto.FLOAT)
    padding = g("Mul", padding, g.constant(MASK_BIAS))
    bias = g("Unsqueeze", padding, i64(g, [1, 2]))  # [B, 1, 1, T]
    for i in range(config.num_hidden_layers):
        layer = f"bert/encoder/layer_{i}"
        query, key, value = (
            g("Reshape", g.dense(x, f"{layer}/attention/{name}"), split)
            for name in ("query", "key", "value")
        )
        query = g("Mul", g("Transpose", query, perm=[0, 2, 1, 3]), g.constant(size**-0.5))
        scores = g("MatMul", query, g("Transpose", key, perm=[0, 2, 3, 1]))
        weights = g("Softmax", g("Add", scores, bias), axis=-1)
        context = g("MatMul", weights, g("Transpose", value, perm=[0, 2, 1, 3]))
        context = g("Reshape", g("Transpose", context, perm=[0, 2, 1, 3]), join)
        y = g("Add", x, g.dense(context, f"{layer}/attention/output"))
        x = g.norm(y, f"{layer}/attention/layer_norm", config)
        y = g.activation(g.dense(x, f"{layer}/feed_forward/intermediate"), config.hidden_act)
        y = g("Add", x, g.dense(y, f"{layer}/feed_forward/output"))
        x = g.norm(y, f"{layer}/feed_forward/layer_norm", config)
    return x


def _vocabulary(g: _Graph, config: ModelConfig, x: str) -> str:
    x = g.activation(g.dense(x, "masked_lm/transform"), config.hidden_act)
    x = g.norm(x, "masked_lm/layer_norm", config)
    tied = "bert/embeddings/word_embeddings"
    table = g.weight(tied if config.tie_word_embeddings else "masked_lm/decoder")
    scores = g("MatMul", x, g("Transpose", table, perm=[1, 0]))
    return g("Add", scores, g.weight("masked_lm/bias"))


def _model(g: _Graph, config: ModelConfig, outputs: Any) -> onnx.ModelProto:
    size = sum(len(tensor.raw_data) for tensor in g.constants.values())
    if size >= LARGEST:
        raise UserError(f"the model has {size:,} bytes; an ONNX file holds less than 2 GB")
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
        for name in INPUTS
    ]
    given = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
        for name, shape in outputs
    ]
    made = helper.make_graph(g.nodes, "clue_jax", inputs, given, list(g.constants.values()))
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR,
        producer_name="clue_jax",
    )  # fmt: skip
    longest = str(config.max_position_embeddings)
    helper.set_model_props(model, {"max_position_embeddings": longest})
    onnx.checker.check_model(model, full_check=True)
    return model
