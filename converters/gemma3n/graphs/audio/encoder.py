"""Builds Gemma 3n's audio encoder as a LiteRT graph: subsampling, then conformer blocks, in the order of computation.

It is a Universal Speech Model conformer for sounds of up to `frames` mel frames; a mask marks the frames of the sound,
and other frames do not affect the result. Hidden states are f32[1, steps, hidden] with one step for four mel frames;
steps are padded to whole blocks of the local attention.
Source: transformers `models/gemma3n/modeling_gemma3n.py` (Gemma3nAudioEncoder).
"""

from __future__ import annotations

import math

import numpy as np

from converters.gemma.graphs.norms import rms_norm, unit_rms
from converters.gemma3n.config.audio import SUBSAMPLING, AudioConfig
from toolkit.base.layout import align_up
from toolkit.tflite import image_ops, ops
from toolkit.tflite.graph import DType, Graph, Value, Weight, WeightPart

NORM_EPSILON = 1e-6  # Gemma3nRMSNorm's default: used by all norms except the two with the config's rms_norm_eps
BLOCKED = -3e4  # added by the mask: far below any capped score, and finite in float16, where a GPU may compute
RUNNING_SCALE = 16.0
"""The divisor of values before their running variance is taken: the square of 256 is infinite in float16."""


def encoder_graph(config: AudioConfig, frames: int) -> Graph:
    """src_inputs: f32[1, frames, mel_bins], mask: bool[1, frames] -> features: f32[1, tokens, hidden], mask: bool.

    The mask is true for the frames of the sound, which come first. Rows of features whose mask is false are zero.
    """
    encoder = _Encoder(config, frames)
    x = encoder.subsample()
    for index in range(config.num_layers):
        x = encoder.block(index, x)
    encoder.finish(x)
    return encoder.graph


class _Encoder:
    """One forward pass under construction: the graph, its masks, and what all blocks share."""

    def __init__(self, config: AudioConfig, frames: int) -> None:
        self.graph = graph = Graph()
        self.config, self._frames = config, frames
        self._mel = graph.input("src_inputs", (1, frames, config.mel_bins))
        self._mask = graph.input("mask", (1, frames), DType.BOOL)
        self._past = config.attention_window - 1
        self._block = max(self._past, 1)
        self._steps = align_up(len(range(0, frames, SUBSAMPLING)), math.lcm(self._block, config.reduction))
        self._blocks = self._steps // self._block
        self._present = ops.cast(self._mask, DType.FLOAT32)
        present = self._every(self._present, SUBSAMPLING)
        count = present.shape[1]
        # In three axes: a GPU does not pad fewer.
        self._valid = ops.pad(ops.reshape(present, (1, count, 1)), [(0, 0), (0, self._steps - count), (0, 0)])
        self._attention_mask = self._local_mask()

    # --- model ---------------------------------------------------------------------------------------------------

    def subsample(self) -> Value:
        """Two convolutions of stride 2 in time and frequency, then a projection: f32[1, steps, hidden]."""
        config = self.config
        x = ops.mul(self._mel, ops.reshape(self._present, (1, self._frames, 1)))
        x = ops.reshape(x, (1, self._frames, config.mel_bins, 1))
        x = self._convolve(0, x, self._every(self._present, 2))
        x = self._convolve(1, x, None)
        _, steps, bins, channels = x.shape
        name = "audio_tower.subsample_conv_projection.input_proj_linear.weight"
        matrix = self.graph.weight(Weight.whole(name, (config.hidden_size, bins * channels)))
        x = ops.fully_connected(ops.reshape(x, (1, steps, bins * channels)), matrix)
        return ops.pad(x, [(0, 0), (0, self._steps - steps), (0, 0)])

    def block(self, index: int, x: Value) -> Value:
        """One conformer block: half-weighted feed-forward, attention, convolution, half-weighted feed-forward, norm."""
        x = self._feed_forward(index, "ffw_layer_start", x)
        x = self._attention(index, x)
        x = ops.mul(x, self._valid)
        x = self._light_convolution(index, x)
        x = self._feed_forward(index, "ffw_layer_end", x)
        return rms_norm(x, self._vector(index, "norm.weight"), NORM_EPSILON)

    def finish(self, x: Value) -> None:
        """Declare the outputs; the last block has already dropped the steps that no token uses."""
        mask = self._every(self._mask, self.config.frames_per_token)
        tokens = mask.shape[1]
        valid = ops.reshape(ops.cast(mask, DType.FLOAT32), (1, tokens, 1))
        self.graph.output("features", ops.mul(ops.take(x, 1, 0, tokens), valid))
        self.graph.output("mask", mask)

    # --- subsampling ---------------------------------------------------------------------------------------------

    def _convolve(self, index: int, x: Value, present: Value | None) -> Value:
        """relu(norm(conv(x))); x: f32[1, time, bins, channels]; each output depends on two later steps.

        Where `present` is 0, the output is zero, like the next convolution's padding if the sound ended there.
        """
        config = self.config
        name = f"audio_tower.subsample_conv_projection.conv_{index}"
        channels = config.subsample_channels[index]
        shape = (channels, 3, 3, x.shape[3])
        kernel = self.graph.weight(Weight.permuted(f"{name}.conv.weight", shape, (0, 2, 3, 1)))
        x = image_ops.conv_2d(ops.pad(x, [(0, 0), (0, 2), (1, 1), (0, 0)]), kernel, stride=2, padding="valid")
        scale = self.graph.weight(Weight.whole(f"{name}.norm.weight", (channels,)))
        return ops.relu(ops.mul(self._cumulative_norm(x, present), scale))

    def _cumulative_norm(self, x: Value, present: Value | None) -> Value:
        """Group norm over all steps so far; the variance uses each step's distance from the mean up to that step."""
        _, time, bins, channels = x.shape
        flat = ops.reshape(x, (1, time, bins * channels))
        centred = ops.sub(flat, self._running_mean(ops.mean(flat)))
        small = ops.mul(centred, self.graph.scalar(1 / RUNNING_SCALE))
        variance = self._running_mean(ops.mean(ops.mul(small, small)))
        factor = ops.rsqrt(ops.add(variance, self.graph.scalar(self.config.group_norm_eps / RUNNING_SCALE**2)))
        if present is not None:
            factor = ops.mul(factor, ops.reshape(present, (1, time, 1)))
        return ops.reshape(ops.mul(small, factor), x.shape)

    def _running_mean(self, x: Value) -> Value:
        """The mean of all steps so far, f32[1, time, 1]; divided before the sum, which float16 could not hold."""
        time = x.shape[1]
        sums = ops.cumsum(ops.mul(x, self.graph.scalar(1 / time)), 1)
        counts = np.arange(1, time + 1, dtype=np.float64)
        return ops.mul(sums, self.graph.constant((time / counts).astype(np.float32).reshape(1, time, 1)))

    # --- conformer -----------------------------------------------------------------------------------------------

    def _feed_forward(self, index: int, part: str, x: Value) -> Value:
        """x + weight * norm(down(silu(up(norm(x)))))."""
        hidden = self.config.hidden_size
        normed = rms_norm(x, self._vector(index, f"{part}.pre_layer_norm.weight"), NORM_EPSILON)
        up = ops.fully_connected(normed, self._matrix(index, f"{part}.ffw_layer_1.weight", 4 * hidden, hidden))
        down = self._matrix(index, f"{part}.ffw_layer_2.weight", hidden, 4 * hidden)
        fed = unit_rms(ops.fully_connected(self._silu(up), down), NORM_EPSILON, gain=self.config.residual_weight)
        return ops.add(x, ops.mul(fed, self._vector(index, f"{part}.post_layer_norm.weight")))

    def _attention(self, index: int, x: Value) -> Value:
        """x + norm(post(attended)); blocks of steps attend to themselves and to the previous block, inside the window.

        query_scale and position_keys are derived from the checkpoint (audio_source.py); the first includes 1 / cap.
        """
        config, hidden, heads = self.config, self.config.hidden_size, self.config.num_heads
        normed = rms_norm(x, self._vector(index, "attention.pre_attn_norm.weight"), NORM_EPSILON)
        tensors = [self._name(index, f"attention.attn.{kind}_proj.weight") for kind in "qkv"]
        name = self._name(index, "attention.attn.qkv_proj.weight")
        matrix = self.graph.weight(Weight(name, (3 * hidden, hidden), tuple(map(WeightPart, tensors))))
        joined = ops.reshape(ops.fully_connected(normed, matrix), (1, self._steps, 3 * heads, config.head_dim))
        joined = ops.transpose(joined, (0, 2, 1, 3))
        query, key, value = (ops.take(joined, 1, i * heads, (i + 1) * heads) for i in range(3))
        scale = Weight.whole(self._name(index, "attention.attn.query_scale"), (config.head_dim,))
        query = ops.mul(query, self.graph.weight(scale))
        scores = ops.batch_matmul(self._in_blocks(query), self._context(key), transpose_b=True)
        capped = ops.tanh(ops.add(scores, self._position_scores(index, query)))
        scores = ops.add(ops.mul(capped, self.graph.scalar(config.logit_cap)), self._attention_mask)
        mixed = ops.batch_matmul(ops.softmax(scores), self._context(value))
        mixed = ops.transpose(ops.reshape(mixed, query.shape), (0, 2, 1, 3))
        post = self._matrix(index, "attention.post.weight", hidden, hidden)
        out = ops.fully_connected(ops.reshape(mixed, (1, self._steps, hidden)), post)
        return ops.add(x, rms_norm(out, self._vector(index, "attention.post_norm.weight"), NORM_EPSILON))

    def _in_blocks(self, x: Value) -> Value:
        """[1, heads, steps, n] -> [heads, blocks, block, n]: the same elements in the same order."""
        return ops.reshape(x, (self.config.num_heads, self._blocks, self._block, x.shape[3]))

    def _context(self, x: Value) -> Value:
        """The context of each block, the previous block and itself: f32[heads, blocks, 2 * block, head_dim]."""
        before = ops.take(ops.pad(x, [(0, 0), (0, 0), (self._block, 0), (0, 0)]), 2, 0, self._steps)
        return ops.concatenation([self._in_blocks(before), self._in_blocks(x)], 2)

    def _position_scores(self, index: int, query: Value) -> Value:
        """query . position_keys[distance] for every key of the context: f32[heads, blocks, block, 2 * block].

        In row w of the product, the distances past..0 belong to keys w + left..., so each row must be shifted by one
        more than the previous row. Padding rows to one element more than the context, and flattening, does this.
        """
        config, block, context = self.config, self._block, 2 * self._block
        shape = (1, config.num_heads, config.attention_window, config.head_dim)
        keys = self.graph.weight(Weight.whole(self._name(index, "attention.attn.position_keys"), shape))
        scores = self._in_blocks(ops.batch_matmul(query, keys, transpose_b=True))
        left = block - self._past
        scores = ops.pad(scores, [(0, 0), (0, 0), (0, 0), (left, context + 1 - left - config.attention_window)])
        flat = ops.reshape(scores, (config.num_heads, self._blocks, block * (context + 1)))
        return ops.reshape(ops.take(flat, 2, 0, block * context), (config.num_heads, self._blocks, block, context))

    def _local_mask(self) -> Value:
        """0 for keys that exist, are not after the query, and are in its window; f32[1, blocks, block, 2 * block]."""
        block = self._block
        before = ops.take(ops.pad(self._valid, [(0, 0), (block, 0), (0, 0)]), 1, 0, self._steps)
        pieces = [ops.reshape(half, (1, self._blocks, 1, block)) for half in (before, self._valid)]
        there = ops.mul(ops.sub(ops.concatenation(pieces, 3), self.graph.scalar(1.0)), self.graph.scalar(-BLOCKED))
        distance = block + np.arange(block)[:, None] - np.arange(2 * block)[None]
        inside = (distance >= 0) & (distance <= self._past)
        window = np.where(inside, np.float32(0), np.float32(BLOCKED)).reshape(1, 1, block, 2 * block)
        return ops.minimum(there, self.graph.constant(window))

    def _light_convolution(self, index: int, x: Value) -> Value:
        """x + end(silu(norm(conv(glu(start(norm(x))))))); the convolution is causal, with a kernel for each channel.

        After the last block's convolution, no step depends on others, so only every nth step is computed from there on.
        """
        config, hidden, epsilon = self.config, self.config.hidden_size, self.config.rms_norm_eps
        normed = rms_norm(x, self._vector(index, "lconv1d.pre_layer_norm.weight"), epsilon)
        start = ops.fully_connected(normed, self._matrix(index, "lconv1d.linear_start.weight", 2 * hidden, hidden))
        gate = ops.logistic(ops.take(start, 2, hidden, 2 * hidden))
        gated = ops.mul(ops.take(start, 2, 0, hidden), gate)
        name = self._name(index, "lconv1d.depthwise_conv1d.weight")
        kernel = self.graph.weight(Weight.permuted(name, (1, config.conv_kernel, 1, hidden), (1, 2, 0)))
        padded = ops.pad(gated, [(0, 0), (config.conv_kernel - 1, 0), (0, 0)])
        column = ops.reshape(padded, (1, padded.shape[1], 1, hidden))
        mixed = ops.reshape(image_ops.depthwise_conv_2d(column, kernel, padding="valid"), x.shape)
        if index == config.num_layers - 1:
            x, mixed = self._every_nth_step(x), self._every_nth_step(mixed)
        mixed = self._silu(rms_norm(mixed, self._vector(index, "lconv1d.conv_norm.weight"), epsilon))
        end = ops.fully_connected(mixed, self._matrix(index, "lconv1d.linear_end.weight", hidden, hidden))
        return ops.add(x, end)

    # --- pieces --------------------------------------------------------------------------------------------------

    def _silu(self, x: Value) -> Value:
        return ops.mul(x, ops.logistic(x))

    def _every(self, x: Value, stride: int) -> Value:
        """Frames 0, stride, ... of [1, frames]."""
        return ops.gather(x, self.graph.ints(range(0, self._frames, stride)), 1)

    def _every_nth_step(self, x: Value) -> Value:
        """Steps 0, reduction, ... of [1, steps, hidden]."""
        _, steps, hidden = x.shape
        tokens = steps // self.config.reduction
        grouped = ops.reshape(x, (1, tokens, self.config.reduction, hidden))
        return ops.reshape(ops.take(grouped, 2, 0, 1), (1, tokens, hidden))

    # --- weights -------------------------------------------------------------------------------------------------

    def _name(self, index: int, tensor: str) -> str:
        return f"audio_tower.conformer.{index}.{tensor}"

    def _vector(self, index: int, tensor: str) -> Value:
        return self.graph.weight(Weight.whole(self._name(index, tensor), (self.config.hidden_size,)))

    def _matrix(self, index: int, tensor: str, rows: int, columns: int) -> Value:
        return self.graph.weight(Weight.whole(self._name(index, tensor), (rows, columns)))
