"""Symmetric uniform quantisation: the weights of a block (a whole row, or a part of it) share one positive scale.

Every step is an elementwise IEEE operation, an exact sum, or a sum in a fixed order, so the bytes depend only on
the weights, not on the number of threads or the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.base.elements import ElementName
from toolkit.base.errors import CheckpointError, RecipeError
from toolkit.quant.scheme import Scheme

F32 = NDArray[np.float32]

# XNNPACK rounds float16 block scales to bfloat16. Ours have 8 significant bits, so both types hold the same number, and
# lie between float16's smallest normal number and the largest number that both types hold.
BLOCK_SCALE_RANGE = (np.float32(2.0**-14), np.float32(65280))
ROW_SCALE_MIN = np.float32(2.0**-126)  # the smallest normal float32: LiteRT refuses 0
ROW_WEIGHT_MAX = np.float32(2.0**126)  # so that no code times its scale overflows

# The scales to try are plain absmax, and the scale that just holds the block without clipping, divided by each of the
# ratios for the block's width. They were chosen by benchmarks/choose_clip_ratios.py: with the least-squares refit, the
# squared error is within 0.3 % (rows: 0.7 %) of an exhaustive search on Gaussian, Laplace and Student-t weights.
CLIP_RATIOS: Mapping[ElementName, tuple[tuple[float, tuple[float, ...]], ...]] = {
    "int4": (
        (32, (0.982, 1.031, 1.083, 1.138)),
        (64, (1.019, 1.07, 1.11, 1.152, 1.195)),
        (128, (1.057, 1.097, 1.138, 1.18, 1.225, 1.286)),
        (256, (1.11, 1.166, 1.21, 1.27, 1.334, 1.401, 1.49)),
        (4096, (1.31, 1.412, 1.484, 1.6, 1.725, 1.907, 2.216, 2.846, 3.94)),
        (math.inf, (1.484, 1.641, 1.86, 2.107, 2.449, 2.992, 3.94, 5.594, 9.0)),
    ),
    # Coarser codes clip more: within 0.9 % in blocks of 256, 2 % in rows.
    "int2": (
        (256, (2.46, 3.104, 3.918, 5.554)),
        (4096, (3.205, 4.04, 5.499, 8.735, 18.173)),
        (math.inf, (3.598, 5.091, 7.203, 12.845, 27.773)),
    ),
    # Rounding noise at 8 bits is so low that little can be clipped, and one ratio does as well as two: on the same
    # weights the error falls by 1 % at 2,048 columns and by 4 % at 8,192.
    "int8": (
        (512, (1.006,)),
        (2048, (1.01,)),
        (4096, (1.02,)),
        (8192, (1.04,)),
        (math.inf, (1.05,)),
    ),
}
"""By element type: pairs of the widest block, and the ratios of blocks up to that width."""

_REFITTED_BITS = 4  # up to this many bits, each candidate's scale is fitted to its codes by least squares

# 1 MB of float32, so that two tiles fill a 2 MB L2 cache. Half of it is a little faster on one thread, but passes are
# then so short that two threads wait for the interpreter's lock.
_TILE_WEIGHTS = 1 << 18


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """codes: int8[rows, columns]; scales: float32[rows], or float16[rows, columns / block_size]."""

    codes: NDArray[np.int8]
    scales: NDArray[np.float32] | NDArray[np.float16]

    @classmethod
    def empty(cls, rows: int, columns: int, scheme: Scheme) -> QuantizedRows:
        """Arrays to be filled."""
        codes = np.empty((rows, columns), np.int8)
        if scheme.block_size is None:
            return cls(codes, np.empty(rows, np.float32))
        return cls(codes, np.empty((rows, columns // scheme.block_size), np.float16))


def quantize_rows(rows: F32, scheme: Scheme, *, name: str = "weights", first_row: int = 0) -> QuantizedRows:
    """Codes and scales of rows, float32[rows, columns].

    CheckpointError for a weight that is not finite, RecipeError for one that is too large for a scale; their messages
    use `name` and `first_row`.
    """
    assert scheme.quantised, "float weights are copied, not quantised"
    count, columns = rows.shape
    width = scheme.block_size or columns
    blocks = np.ascontiguousarray(rows, np.float32).reshape(count * (columns // width), width)
    codes = np.empty(blocks.shape, np.int8)
    scales = np.empty(len(blocks), np.float32)
    tile = max(1, min(_TILE_WEIGHTS // width, len(blocks)))
    work = _Workspace(scheme, tile, width)
    try:
        for start in range(0, len(blocks), tile):
            part = slice(start, start + tile)
            scales[part] = work.scales(blocks[part])
            work.round(blocks[part], scales[part], codes[part])
    except _UnfitBlock as unfit:
        row = first_row + (start + unfit.block) * width // columns
        raise unfit.error(f"weight {name}, row {row}") from None
    codes = codes.reshape(count, columns)
    if scheme.block_size is None:
        return QuantizedRows(codes, scales)
    return QuantizedRows(codes, scales.astype(np.float16).reshape(count, columns // width))


def dequantize_rows(quantized: QuantizedRows) -> F32:
    """Codes times scales, the numbers that LiteRT computes with: float32[rows, columns]."""
    codes, scales = quantized.codes, quantized.scales.astype(np.float32)
    blocks = scales.reshape(len(codes), -1)
    values = codes.astype(np.float32).reshape(*blocks.shape, codes.shape[1] // max(1, blocks.shape[1]))
    values *= blocks[..., None]
    return values.reshape(codes.shape)


def block_scale(scale: F32) -> F32:
    """The nearest number that bfloat16 and float16 both hold as a normal number.

    >>> block_scale(np.array([0.0, 1.0 + 2**-9, 0.01, 1e9], np.float32)).tolist()
    [6.103515625e-05, 1.0, 0.010009765625, 65280.0]
    """
    low, high = BLOCK_SCALE_RANGE
    clipped = np.clip(scale, low, high)
    shifted = clipped * np.float32(2**16 + 1)  # Veltkamp's split: keeps the 24 - 16 leading bits, rounded to nearest
    np.subtract(shifted, clipped, out=clipped)
    rounded: F32 = np.subtract(shifted, clipped, out=shifted)
    return rounded


class _UnfitBlock(Exception):
    """A block that no scale can represent."""

    def __init__(self, block: int, absmax: float, largest: float) -> None:
        super().__init__(block)
        self.block = block
        self._absmax = absmax
        self._largest = largest

    def error(self, what: str) -> CheckpointError | RecipeError:
        """The error for the user; `what` names the weight and the row."""
        if not math.isfinite(self._absmax):
            return CheckpointError(what, found=f"{self._absmax}, not a finite number", remedy="download it again")
        wanted = f"at most {self._largest:g}, the largest that these scales can represent"
        return RecipeError(what, found=f"{self._absmax:g}", wanted=wanted, remedy="keep this weight f32")


class _Workspace:
    """Memory for tiles of one scheme, and the computations that reuse it.

    The search works on int4 blocks transposed, [width, blocks], so that sums over a short block are vectorised, and in
    integers, `steps` to a code: no sum exceeds 8 * 8 * steps * width <= 2**24, so float32 holds every sum exactly.
    All other arrays are [blocks, width].
    """

    def __init__(self, scheme: Scheme, tile: int, width: int) -> None:
        self._search = scheme.search
        codes = scheme.element.codes
        assert codes is not None, scheme
        self._low, self._high = np.float32(codes[0]), np.float32(codes[1])
        self._refits = scheme.element.bits <= _REFITTED_BITS
        self._blocks = scheme.block_size is not None
        self._scale_min = BLOCK_SCALE_RANGE[0] if self._blocks else ROW_SCALE_MIN
        self._transposed = self._blocks and self._refits
        self._steps = 2.0 ** (18 - (width - 1).bit_length()) if self._transposed else 1.0
        table = CLIP_RATIOS[scheme.dtype] if scheme.search == "mse" else ((math.inf, ()),)
        self._ratios = next(ratios for widest, ratios in table if width <= widest)
        self._buffers = [_aligned(tile * width) for _ in range(3)]

    def scales(self, blocks: F32) -> F32:
        """The scale of each block, as it will be stored; blocks: [count, width]."""
        if self._search == "absmax":
            return self._plain(self._absmax(blocks))
        if not self._refits:
            return self._least_error(blocks, self._plain(self._absmax(blocks)))
        x = blocks
        if self._transposed:
            x = self._scratch(0, blocks.T.shape)
            np.copyto(x, blocks.T)
        axis = 0 if self._transposed else 1
        top: F32 = np.maximum.reduce(x, axis=axis)
        bottom: F32 = np.minimum.reduce(x, axis=axis)
        plain = self._plain(np.maximum(top, -bottom))
        return self._least_squares(x, plain, np.maximum(top / self._high, bottom / self._low))

    def round(self, blocks: F32, scales: F32, out: NDArray[np.int8]) -> None:
        """Codes for given scales: round(w * (1 / scale)), ties to even, clipped."""
        t = self._scratch(1, blocks.shape)
        np.multiply(blocks, (np.float32(1) / scales)[:, None], out=t)
        if self._search == "absmax":
            # Nothing needs clipping: absmax / high is at most 1 + 2^-8 times the stored scale, and 127 times that
            # rounds to 127.
            np.rint(t, out=t)
        else:
            self._round(t, t)
        np.copyto(out, t, casting="unsafe")

    def _absmax(self, blocks: F32) -> F32:
        """The largest magnitude of each block, or a NaN: the bits of floats without their sign sort like integers."""
        magnitudes = self._scratch(1, blocks.shape).view(np.uint32)
        np.bitwise_and(blocks.view(np.uint32), np.uint32(0x7FFFFFFF), out=magnitudes)
        largest: F32 = np.maximum.reduce(magnitudes, axis=1).view(np.float32)
        return largest

    def _plain(self, absmax: F32) -> F32:
        """Scales that map the largest magnitude to the largest code."""
        largest = BLOCK_SCALE_RANGE[1] * self._high if self._blocks else ROW_WEIGHT_MAX
        unfit = ~(absmax <= largest)  # a NaN fits nowhere
        if unfit.any():
            block = int(unfit.argmax())
            raise _UnfitBlock(block, float(absmax[block]), float(largest))
        return self._stored(absmax / self._high)

    def _stored(self, scale: F32) -> F32:
        return block_scale(scale) if self._blocks else np.maximum(scale, ROW_SCALE_MIN)

    def _least_squares(self, x: F32, plain: F32, unclipped: F32) -> F32:
        """The candidate with the least squared error, after each candidate's scale is refitted to its codes.

        For codes q the best scale is <w, q> / <q, q>; a stored s gives the error <w, w> + s (s <q, q> - 2 <w, q>).
        """
        unit: F32 = np.maximum(unclipped, self._scale_min)
        unit /= np.float32(self._steps)
        u, t = self._scratch(0, x.shape), self._scratch(1, x.shape)
        np.multiply(x, self._spread(np.float32(1) / unit), out=u)
        if self._transposed:
            np.rint(u, out=u)
        candidates = [self._spread(unit / plain), *(np.float32(ratio / self._steps) for ratio in self._ratios)]
        sums = np.empty((2, len(candidates), len(plain)), np.float32)
        for uq, qq, factor in zip(*sums, candidates, strict=True):
            self._round(np.multiply(u, factor, out=t), t)
            self._dot(u, t, uq)
            self._dot(t, t, qq)
        uq, qq = sums[0], sums[1]
        stored = self._stored(uq / np.maximum(qq, np.float32(1)) * unit)
        scale = stored / unit
        cost = np.multiply(scale, qq, out=qq)
        cost -= uq
        cost -= uq
        cost *= scale
        return _pick(stored, cost)

    def _dot(self, a: F32, b: F32, out: F32) -> None:
        """Sums of products over each block."""
        if self._transposed:
            np.einsum("ij,ij->j", a, b, out=out)  # exact, whether or not multiply-adds are fused
        else:
            np.add.reduce(np.multiply(a, b, out=self._scratch(2, a.shape)), axis=1, out=out)

    def _least_error(self, blocks: F32, plain: F32) -> F32:
        """The candidate with the least squared error, summed over residuals: at 8 bits, the formula of `_least_squares`
        loses too much precision."""
        t, residual = self._scratch(1, blocks.shape), self._scratch(2, blocks.shape)
        stored = np.stack([plain, *(self._stored(plain / np.float32(ratio)) for ratio in self._ratios)])
        errors = np.empty_like(stored)
        for scales, error in zip(stored, errors, strict=True):
            np.multiply(blocks, (np.float32(1) / scales)[:, None], out=residual)
            self._round(residual, t)
            residual -= t
            np.add.reduce(np.square(residual, out=residual), axis=1, out=error)
        errors *= np.square(stored / plain)
        return _pick(stored, errors)

    def _round(self, x: F32, out: F32) -> None:
        """Round weights in units of their scale to codes."""
        np.rint(x, out=out)
        np.clip(out, self._low, self._high, out=out)

    def _spread(self, per_block: F32) -> F32:
        """One number per block, shaped to broadcast over the blocks' weights in `_least_squares`."""
        return per_block if self._transposed else per_block[:, None]

    def _scratch(self, index: int, shape: tuple[int, ...]) -> F32:
        scratch: F32 = self._buffers[index][: math.prod(shape)].reshape(shape)
        return scratch


def _pick(scales: F32, costs: F32) -> F32:
    """The scale with the least cost in each column, the larger one if costs are equal; both [candidates, blocks]."""
    least = np.minimum.reduce(costs, axis=0)
    best: F32 = np.maximum.reduce(np.where(costs == least, scales, np.float32(0)), axis=0)
    return best


def _aligned(count: int) -> F32:
    """Uninitialised float32[count], aligned to a cache line: NumPy's vector loops run up to twice as fast there."""
    raw = np.empty(4 * count + 64, np.uint8)
    start = -raw.ctypes.data % 64
    aligned: F32 = raw[start : start + 4 * count].view(np.float32)
    return aligned
