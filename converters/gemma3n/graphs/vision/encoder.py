"""Builds Gemma 3n's vision encoder as a LiteRT graph: MobileNet-V5 with its multi-scale fusion adapter.

All values are f32[1, height, width, channels], convolutions are padded like TensorFlow's "same", and norms are over the
channels of a position. Pointwise convolutions are FULLY_CONNECTED: in int8, LiteRT then quantises the activations of
each position separately, while CONV_2D would use one scale for a whole image.
Source: timm 1.0.31 models/mobilenetv5.py, _efficientnet_blocks.py, layers/attention2d.py.
"""

from __future__ import annotations

from converters.gemma.graphs.norms import rms_norm
from converters.gemma3n.config.vision import STEM_BIAS, TOWER, VisionConfig
from converters.gemma3n.config.vision_blocks import EdgeResidual, InvertedResidual, MultiQueryAttention
from toolkit.tflite import image_ops, ops
from toolkit.tflite.graph import Graph, Value, Weight

NORM_EPS = 1e-6  # RmsNorm2d


def vision_encoder_graph(config: VisionConfig, image_size: int) -> Graph:
    """images: f32[1, size, size, 3], RGB in [0, 1] -> features: f32[1, soft tokens, 2048], row by row."""
    config.check_image_size(image_size)
    tower = _Tower(config)
    x = tower.stem(tower.graph.input("images", (1, image_size, image_size, 3)))
    ends = []
    for s, stage in enumerate(config.stages):
        for b, block in enumerate(stage):
            name = f"{TOWER}.blocks.{s}.{b}"
            if isinstance(block, EdgeResidual):
                x = tower.edge_residual(name, block, x)
            elif isinstance(block, InvertedResidual):
                x = tower.inverted_residual(name, block, x)
            else:
                x = tower.attention(name, block, x)
        ends.append(x)
    fused = tower.fuse(ends[-2], ends[-1])
    tower.graph.output("features", ops.reshape(fused, (1, config.soft_tokens, config.hidden_size)))
    return tower.graph


class _Tower:
    """The graph under construction."""

    def __init__(self, config: VisionConfig) -> None:
        self.graph = Graph()
        self.config = config

    def stem(self, images: Value) -> Value:
        """Halve the resolution: convolution, norm, activation."""
        channels = self.config.stem_channels
        name = f"{TOWER}.conv_stem"
        weight = self._kernel(f"{name}.conv.weight", channels, 3, 3)
        bias = self._vector(STEM_BIAS, channels) if self.config.stem_bias else None
        x = image_ops.conv_2d(images, weight, bias, stride=2)
        return ops.gelu_tanh(self._norm(x, f"{name}.bn.weight"))

    def edge_residual(self, name: str, block: EdgeResidual, x: Value) -> Value:
        """x + norm(project(gelu(norm(expand(x)))))."""
        kernel = self._kernel(f"{name}.conv_exp.weight", block.expanded, block.in_channels, block.kernel)
        y = image_ops.conv_2d(x, kernel, stride=block.stride)
        y = ops.gelu_tanh(self._norm(y, f"{name}.bn1.weight"))
        y = self._norm(self._pointwise(y, f"{name}.conv_pwl.weight", block.channels), f"{name}.bn2.weight")
        return ops.add(x, y) if y.shape == x.shape else y

    def inverted_residual(self, name: str, block: InvertedResidual, x: Value) -> Value:
        """x + scale * norm(project(gelu(norm(depthwise(gelu(norm(expand(norm(depthwise(x))))))))))."""
        y = x
        if block.start_kernel:
            stride = 1 if block.middle_kernel else block.stride
            y = self._depthwise(y, f"{name}.dw_start.conv.weight", block.start_kernel, stride)
            y = self._norm(y, f"{name}.dw_start.bn.weight")
        y = self._pointwise(y, f"{name}.pw_exp.conv.weight", block.expanded)
        y = ops.gelu_tanh(self._norm(y, f"{name}.pw_exp.bn.weight"))
        if block.middle_kernel:
            y = self._depthwise(y, f"{name}.dw_mid.conv.weight", block.middle_kernel, block.stride)
            y = ops.gelu_tanh(self._norm(y, f"{name}.dw_mid.bn.weight"))
        y = self._pointwise(y, f"{name}.pw_proj.conv.weight", block.channels)
        gamma = self._vector(f"{name}.layer_scale.gamma", block.channels)
        y = self._norm(y, f"{name}.pw_proj.bn.weight", scale=gamma)
        return ops.add(x, y) if y.shape == x.shape else y

    def attention(self, name: str, block: MultiQueryAttention, x: Value) -> Value:
        """x + scale * output(softmax(query @ key / sqrt(head_dim)) @ value), over all positions.

        All heads share keys and values, so the heads of all positions are rows of one matrix.
        """
        _, height, width, channels = x.shape
        heads, head_dim = block.heads, block.head_dim
        normed = self._norm(x, f"{name}.norm.weight")
        query = self._pointwise(normed, f"{name}.attn.query.proj.weight", heads * head_dim)
        key = ops.mul(self._keys_or_values(normed, f"{name}.attn.key", block), self.graph.scalar(head_dim**-0.5))
        value = self._keys_or_values(normed, f"{name}.attn.value", block)
        query = ops.reshape(query, (1, height * width * heads, head_dim))
        mixed = ops.batch_matmul(ops.softmax(ops.batch_matmul(query, key, transpose_b=True)), value)
        mixed = ops.reshape(mixed, (1, height, width, heads * head_dim))
        y = self._pointwise(mixed, f"{name}.attn.output.proj.weight", channels)
        return ops.add(x, ops.mul(y, self._vector(f"{name}.layer_scale.gamma", channels)))

    def _keys_or_values(self, normed: Value, name: str, block: MultiQueryAttention) -> Value:
        """Keys or values f32[1, positions, head_dim]; if the block has a stride, only of every other row and column."""
        x = normed
        if block.kv_stride > 1:
            x = self._depthwise(x, f"{name}.down_conv.weight", block.kernel, block.kv_stride)
            x = self._norm(x, f"{name}.norm.weight")
        x = self._pointwise(x, f"{name}.proj.weight", block.head_dim)
        return ops.reshape(x, (1, x.shape[1] * x.shape[2], block.head_dim))

    def fuse(self, fine: Value, coarse: Value) -> Value:
        """The fusion adapter: both scales at the finer resolution, a feed-forward, then pooling to the soft tokens."""
        config = self.config
        coarse = image_ops.resize_nearest_neighbor(coarse, fine.shape[1], fine.shape[2])
        name = f"{TOWER}.msfa.ffn"
        x = self._pointwise(ops.concatenation([fine, coarse], 3), f"{name}.pw_exp.conv.weight", config.fusion_expanded)
        x = ops.gelu_tanh(self._norm(x, f"{name}.pw_exp.bn.weight"))
        x = self._pointwise(x, f"{name}.pw_proj.conv.weight", config.hidden_size)
        x = self._norm(x, f"{name}.pw_proj.bn.weight")
        pooled = image_ops.average_pool_2d(x, x.shape[1] // config.output_resolution)
        return self._norm(pooled, f"{TOWER}.msfa.norm.weight")

    # --- layers --------------------------------------------------------------------------------------------------

    def _pointwise(self, x: Value, name: str, channels: int) -> Value:
        """A 1 x 1 convolution, with the checkpoint's [out, in, 1, 1] as a matrix."""
        weight = Weight.permuted(name, (channels, x.shape[-1]), (0, 1, 2, 3))
        return ops.fully_connected(x, self.graph.weight(weight))

    def _depthwise(self, x: Value, name: str, kernel: int, stride: int) -> Value:
        """A depthwise convolution; the checkpoint's [channels, 1, height, width] as [1, height, width, channels]."""
        weight = Weight.permuted(name, (1, kernel, kernel, x.shape[-1]), (1, 2, 3, 0))
        return image_ops.depthwise_conv_2d(x, self.graph.weight(weight), stride=stride)

    def _kernel(self, name: str, channels: int, in_channels: int, kernel: int) -> Value:
        """The checkpoint's [out, in, height, width] as [out, height, width, in]."""
        return self.graph.weight(Weight.permuted(name, (channels, kernel, kernel, in_channels), (0, 2, 3, 1)))

    def _vector(self, name: str, channels: int) -> Value:
        return self.graph.weight(Weight.whole(name, (channels,)))

    def _norm(self, x: Value, name: str, *, scale: Value | None = None) -> Value:
        """x / rms(x) * weight; a layer scale, if there is one, is combined with the weight into one vector."""
        weight = self._vector(name, x.shape[-1])
        if scale is not None:
            weight = ops.mul(weight, scale)
        return rms_norm(x, weight, NORM_EPS)
