"""The operators on images that our graphs use, in TensorFlow's layout: f32[n, h, w, channels]; see `ops`."""

from __future__ import annotations

from typing import Literal

import numpy as np

from toolkit.base.layout import ceil_div
from toolkit.tflite.graph import Options, TensorType, Value
from toolkit.tflite.op_checks import apply, require, require_floats

Padding = Literal["same", "valid"]
"""`same`: with zeros around it, so that the output's size is the input's divided by the stride, rounded up; if their
number is odd, the extra one is at the bottom or right. `valid`: no zeros."""

_PADDINGS: dict[Padding, int] = {"same": 0, "valid": 1}  # Padding in schema.fbs


def conv_2d(x: Value, weight: Value, bias: Value | None = None, *, stride: int = 1, padding: Padding = "same") -> Value:
    """Convolution, padded as in TensorFlow; x: f32[n, h, w, in], weight: [out, kh, kw, in], bias: f32[out]."""
    require_floats("CONV_2D", x, weight)
    require(
        len(x.shape) == len(weight.shape) == 4 and x.shape[3] == weight.shape[3], "CONV_2D wants NHWC, OHWI", x, weight
    )
    result = TensorType((x.shape[0], *_positions(x, weight, stride, padding), weight.shape[0]))
    options = Options("Conv2DOptions", (("padding", _PADDINGS[padding]), ("strideH", stride), ("strideW", stride)))
    return apply("CONV_2D", [x, weight, _bias(bias, weight, weight.shape[0])], result, options)


def depthwise_conv_2d(
    x: Value, weight: Value, bias: Value | None = None, *, stride: int = 1, padding: Padding = "same"
) -> Value:
    """Convolution of each channel with its own kernel; x: f32[n, h, w, c], weight: [1, kh, kw, c], bias: f32[c]."""
    require_floats("DEPTHWISE_CONV_2D", x, weight)
    fits = len(x.shape) == len(weight.shape) == 4 and (weight.shape[0], weight.shape[3]) == (1, x.shape[3])
    require(fits, "DEPTHWISE_CONV_2D wants NHWC and a kernel [1, h, w, c]", x, weight)
    result = TensorType((x.shape[0], *_positions(x, weight, stride, padding), x.shape[3]))
    fields = (("padding", _PADDINGS[padding]), ("strideH", stride), ("strideW", stride), ("depthMultiplier", 1))
    inputs = [x, weight, _bias(bias, weight, x.shape[3])]
    return apply("DEPTHWISE_CONV_2D", inputs, result, Options("DepthwiseConv2DOptions", fields))


def average_pool_2d(x: Value, size: int) -> Value:
    """The mean of each square of `size`, which must divide height and width; x: f32[n, h, w, c]; x itself for 1."""
    require_floats("AVERAGE_POOL_2D", x)
    fits = len(x.shape) == 4 and size > 0 and x.shape[1] % size == 0 == x.shape[2] % size
    require(fits, f"AVERAGE_POOL_2D wants NHWC that squares of {size} tile", x)
    if size == 1:
        return x
    fields = (
        ("padding", _PADDINGS["valid"]),
        ("strideH", size),
        ("strideW", size),
        ("filterHeight", size),
        ("filterWidth", size),
    )
    result = TensorType((x.shape[0], x.shape[1] // size, x.shape[2] // size, x.shape[3]))
    return apply("AVERAGE_POOL_2D", [x], result, Options("Pool2DOptions", fields))


def resize_nearest_neighbor(x: Value, height: int, width: int) -> Value:
    """Row i of the result is row floor(i * old / new), columns likewise; x: f32[n, h, w, c]."""
    require(len(x.shape) == 4, "RESIZE_NEAREST_NEIGHBOR wants NHWC", x)
    if x.shape[1:3] == (height, width):
        return x
    result = TensorType((x.shape[0], height, width, x.shape[3]), x.dtype)
    inputs = [x, x.graph.ints([height, width])]
    return apply("RESIZE_NEAREST_NEIGHBOR", inputs, result, Options("ResizeNearestNeighborOptions"))


def _positions(x: Value, kernel: Value, stride: int, padding: Padding) -> tuple[int, int]:
    """Height and width after a convolution with a kernel [., kh, kw, .]."""
    require(stride > 0, f"a stride of {stride}", x)
    height, width = (
        d if padding == "same" else d - k + 1 for d, k in zip(x.shape[1:3], kernel.shape[1:3], strict=True)
    )
    return ceil_div(max(height, 0), stride), ceil_div(max(width, 0), stride)


def _bias(bias: Value | None, weight: Value, outputs: int) -> Value:
    """The bias, or zeros: XNNPACK and some of LiteRT's kernels require one."""
    if bias is None:
        return weight.graph.constant(np.zeros(outputs, np.float32))
    require_floats("a bias", bias)
    require(bias.shape == (outputs,), f"a convolution with {outputs} outputs wants a bias for each", weight, bias)
    return bias
