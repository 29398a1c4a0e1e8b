"""What a target, the part of LiteRT that runs a bundle, takes and runs fast: files and graphs are made for one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """The limits and the preferred sizes of one target; tokens and positions are counts, nothing here is in bytes."""

    name: str
    block_sizes: tuple[int, ...]
    """Columns that may share one scale, in weights that have block scales; ascending."""
    prefill_sizes: tuple[int, ...]
    """Tokens of the prefills that a bundle has by default; ascending."""
    smallest_prefill_limit: int
    """The smallest prefill of a bundle may take at most so many tokens."""
    smallest_bucket: int
    """Positions of the shortest context that gets signatures of its own."""
    bucket_factor: int
    """How many times longer the next such context is; the whole context, too, is at least so much longer than each."""
    smallest_prefill_bucket: int
    """Positions of the shortest context that gets prefills of its own."""

    def prefills_within(self, context: int) -> tuple[int, ...]:
        """The default prefills that fit a context.

        >>> CPU.prefills_within(40)
        (16,)
        """
        return tuple(tokens for tokens in self.prefill_sizes if tokens <= context)

    def context_buckets(self, context: int) -> tuple[int, ...]:
        """Shorter contexts that get signatures of their own, so that a step reads no more of the caches than is used.

        >>> CPU.context_buckets(8192), CPU.context_buckets(4096), CPU.context_buckets(1024)
        ((512, 2048), (512,), ())
        """
        buckets = []
        bucket = self.smallest_bucket
        while bucket * self.bucket_factor <= context:
            buckets.append(bucket)
            bucket *= self.bucket_factor
        return tuple(buckets)

    def prefill_buckets(self, context: int, largest_prefill: int) -> tuple[int, ...]:
        """Those of `context_buckets` in which prefills have signatures too.

        >>> CPU.prefill_buckets(32768, 128)
        (8192,)
        """
        shortest = max(self.smallest_prefill_bucket, largest_prefill)
        return tuple(bucket for bucket in self.context_buckets(context) if bucket >= shortest)


CPU = Target(
    name="cpu",
    # XNNPACK has kernels for multiples of 32; other sizes fall to a kernel 500 times slower.
    block_sizes=(32, 64, 128, 256),
    # Beyond 64 a CPU gains some percent at most, and arenas and rings grow.
    prefill_sizes=(16, 64),
    # LiteRT-LM fails where the room left in the context is smaller than the smallest prefill.
    smallest_prefill_limit=16,
    smallest_bucket=512,
    # LiteRT keeps some 10 MB of each signature of a real size, more than closer buckets would save.
    bucket_factor=4,
    # Attention over fewer rows is some percent of a prefill of a real size.
    smallest_prefill_bucket=4096,
)
"""LiteRT's CPU runtime, XNNPACK, here and inside LiteRT-LM."""
