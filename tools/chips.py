"""What accelerators can do and cost, and how much arithmetic a model asks for."""

from __future__ import annotations

from dataclasses import dataclass

from clue_jax.config import ModelConfig


@dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
      devices: what jax sees of it: the cores of a v2 or v3 are devices of their own.
      megahertz: of its clock, by which cycles become time.
      teraflops: bfloat16, dense, of the chip.
      hbm: bytes of memory a device has.
      dollars_per_hour: list price on demand in the United States, 2025; 0 where there is none.
    """

    devices: int
    megahertz: float
    teraflops: float
    hbm: int
    dollars_per_hour: float


_GIB = 2**30

# By jax's device_kind. Clocks of v5 and v6 follow from the peak and the size of the matrix units;
# how many of these a v6e has is not certain, nor is its clock.
TPUS = {
    "TPU v2": Chip(2, 700, 45, 8 * _GIB, 1.125),
    "TPU v3": Chip(2, 940, 123, 16 * _GIB, 2.0),
    "TPU v4": Chip(1, 1050, 275, 32 * _GIB, 3.22),
    "TPU v5 lite": Chip(1, 1500, 197, 16 * _GIB, 1.2),
    "TPU v5": Chip(1, 1750, 459, 95 * _GIB, 4.2),
    "TPU v6 lite": Chip(1, 1750, 918, 32 * _GIB, 2.7),
}

# Peak of bfloat16 products in TFLOP/s as measured on large matrices, not the data sheet's 989: what
# is called MFU is 25 % higher than by that.
GPU_TERAFLOPS = {"H200": 790.0, "H100": 790.0}


def peak_teraflops(device_kind: str) -> float | None:
    """Of one device, in bfloat16; None if it is not known."""
    if chip := TPUS.get(device_kind):
        return chip.teraflops / chip.devices
    return next((peak for name, peak in GPU_TERAFLOPS.items() if name in device_kind), None)


def flops_per_token(
    config: ModelConfig, seq_len: int, predictions: float, training: bool = True
) -> float:
    """Floating-point operations of matrix products for one slot of a row.

    A multiplication and an addition are two; training is three times the forward pass; the
    masked-LM head works on the masked slots alone. Nothing is counted twice for what is computed
    anew to save memory (PaLM, Chowdhery et al. 2022, appendix B).

    Args:
      config: the sizes.
      seq_len: T.
      predictions: M; 0 for a model without that head.
      training: both passes; else the forward pass.
    """
    width, inner = config.hidden_size, config.intermediate_size
    layer = 4 * width**2 + 2 * width * inner + 2 * seq_len * width
    head = width**2 + width * config.vocab_size
    products = config.num_hidden_layers * layer + predictions / seq_len * head
    return (6 if training else 2) * products
