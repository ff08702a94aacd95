"""A linear layer or a table that something is added to, under the parameter names it had.

`...query.kernel` stays `...query.kernel`; what is new lies beside it (`...query.lora_a`). So a
network with adapters is loaded, exported and compared under the names it always had.
"""

from typing import Any

import jax
import jax.numpy as jnp
import qwix
from flax import nnx

from ftjax.models.layers import Constant, Embed, Linear, Network, matmul_2d
from ftjax.tuning.noise import NoisyLayer

# Elements of a kernel that share a scale, along its inputs (Dettmers et al. 2023, section 3).
BLOCK_SIZE = 64


class AdaptedLinear(NoisyLayer):
    """Takes over a linear layer's parameters; subclasses say what is computed with them.

    Attributes:
        kernel: [in, out]; None where it is quantised into `kernel_codes` and `kernel_scale`.
        bias: [out] or None.
        dtype: of the computation.
        quantization: "int8", "int4", "nf4" or None.
    """

    def __init__(self, layer: nnx.Linear, quantization: str | None = None):
        super().__init__()
        self.bias, self.dtype = layer.bias, layer.dtype
        self.quantization: str | None = None
        self.in_features, self.out_features = layer.kernel.shape
        self.kernel: Any = nnx.data(layer.kernel)
        if quantization is not None:
            self.quantize(quantization)

    def quantize(self, quantization: str) -> None:
        """Keeps the kernel in few bits from now on."""
        quantized = quantize(self.kernel[...], quantization)
        self.kernel, self.quantization = nnx.data(None), quantization
        self.kernel_codes = Constant(packed(quantized.qvalue))
        self.kernel_scale = Constant(quantized.scale)

    def base_kernel(self, dtype: Any = jnp.float32) -> jax.Array:
        """[in, out], dequantised where it is quantised."""
        if (quantization := self.quantization) is None:
            return self.kernel[...].astype(dtype)
        codes, scale = self.kernel_codes[...], self.kernel_scale[...]
        return dequantized(codes, scale, quantization, self.in_features, dtype)

    def base(self, x: jax.Array) -> jax.Array:
        """What the layer computed before, [..., in] -> [..., out]."""
        if (quantization := self.quantization) is None:
            return self.with_bias(matmul_2d(x.astype(self.dtype), self.base_kernel(self.dtype)))

        # Dequantised again in the backward pass: kept until then, all kernels would be there at
        # once in full precision.
        def product(x, codes, scale):
            return matmul_2d(x, dequantized(codes, scale, quantization, self.in_features, x.dtype))

        codes, scale = self.kernel_codes[...], self.kernel_scale[...]
        return self.with_bias(jax.checkpoint(product)(x.astype(self.dtype), codes, scale))

    def with_bias(self, y: jax.Array) -> jax.Array:
        """Adds the bias, if there is one."""
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)

    def merged_kernel(self) -> jax.Array:
        """The kernel of the plain layer that computes the same, float32 [in, out]."""
        return self.base_kernel()

    def merged_bias(self) -> jax.Array | None:
        """The bias of that layer, float32 [out]."""
        return None if self.bias is None else self.bias[...].astype(jnp.float32)

    def merged(self) -> nnx.Linear:
        """The plain layer that computes the same, its parameters in float32."""
        kernel, bias = self.merged_kernel(), self.merged_bias()
        layer: Network = nnx.eval_shape(
            lambda: Linear(
                *kernel.shape, use_bias=bias is not None, dtype=self.dtype, rngs=nnx.Rngs(0)
            )
        )
        layer.kernel.set_value(kernel)
        if bias is not None:
            layer.bias.set_value(bias)
        return layer


class QuantizedLinear(AdaptedLinear):
    """A layer whose kernel is kept in few bits and dequantised where it is used."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out]."""
        return self.base(x)


class AdaptedEmbed(NoisyLayer):
    """Takes over an embedding table; during training it can add noise to what is looked up.

    Attributes:
        embedding: [rows, features].
        neftune_alpha: strength of the noise (Jain et al. 2023, https://arxiv.org/abs/2310.05914).
    """

    def __init__(self, layer: nnx.Embed):
        super().__init__()
        self.embedding, self.dtype = layer.embedding, layer.dtype
        self.num_embeddings, self.features = layer.embedding.shape
        self.neftune_alpha = 0.0

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Int [batch, length] -> [batch, length, features]."""
        rows, key = self.look_up(ids), self.key()
        if key is None or self.neftune_alpha == 0.0:
            return rows
        bound = self.neftune_alpha / (rows.shape[-2] * rows.shape[-1]) ** 0.5
        noise = jax.random.uniform(key, rows.shape, rows.dtype, minval=-bound, maxval=bound)
        return rows + noise

    def look_up(self, ids: jax.Array) -> jax.Array:
        """Rows of the table."""
        return self.embedding[...][ids].astype(self.dtype)

    def attend(self, hidden: jax.Array) -> jax.Array:
        """Logits [..., rows], for a head tied to the table."""
        return matmul_2d(hidden.astype(self.dtype), self.head_table().astype(self.dtype).T)

    def head_table(self) -> jax.Array:
        """What a head tied to the table repeats, [rows, features]."""
        return self.merged_table()

    def merged_table(self) -> jax.Array:
        """The plain table that looks up the same, float32 [rows, features]."""
        return self.embedding[...].astype(jnp.float32)

    def merged(self) -> nnx.Embed:
        """That table as a layer."""
        table = self.merged_table()
        layer = nnx.eval_shape(lambda: Embed(*table.shape, dtype=self.dtype, rngs=nnx.Rngs(0)))
        layer.embedding.set_value(table)
        return layer


def quantize(kernel: jax.Array, quantization: str) -> qwix.QArray:
    """Few bits per element and a float32 scale per block of inputs.

    Args:
        kernel: [in, out].
        quantization: "int8", "int4", or "nf4" (Dettmers et al. 2023, 2305.14314, appendix E).
    """
    inputs = kernel.shape[0]
    tile = next(size for size in range(min(BLOCK_SIZE, inputs), 0, -1) if inputs % size == 0)
    return qwix.quantize(
        kernel.astype(jnp.float32),
        qtype(quantization),
        channelwise_axes=(1,),
        tiled_axes={0: tile},
    )


def packed(codes: jax.Array) -> jax.Array:
    """Codes of four bits two to a byte, uint8 [ceil(in / 2), out]; others as they are.

    The lower bits are of the first half of the inputs. Arrays of four bits are JAX's, too, but 0.10
    cannot pass placed ones to a program that was compiled ahead.
    """
    if jnp.iinfo(codes.dtype).bits != 4:
        return codes
    bits = codes.astype(jnp.uint8) & 15
    low, high = jnp.split(jnp.pad(bits, ((0, len(bits) % 2), (0, 0))), 2)
    return low | (high << 4)


def dequantized(
    codes: jax.Array, scale: jax.Array, quantization: str, inputs: int, dtype: Any
) -> jax.Array:
    """The kernel [in, out] of what `quantize` made and `packed` packed."""
    kind = qtype(quantization)
    if kind != jnp.int8:
        codes = jnp.concatenate([codes & 15, codes >> 4])[:inputs]
        codes = codes.astype(jnp.uint4 if quantization == "nf4" else jnp.int4)
    return qwix.dequantize(qwix.QArray(codes, scale, qtype=kind)).astype(dtype)


def qtype(quantization: str) -> Any:
    """As qwix names it."""
    return quantization if quantization == "nf4" else jnp.dtype(quantization)
