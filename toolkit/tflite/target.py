"""What a target (the part of LiteRT that runs a bundle) accepts, and runs fast: files and graphs are made for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """The limits and preferences of one target. Nothing here is in bytes: all are counts of columns or tokens."""

    name: str
    block_sizes: tuple[int, ...]
    """The block sizes that weights with block scales may have, in columns, ascending."""
    prefill_sizes: tuple[int, ...]
    """How many tokens each prefill of a bundle takes by default, ascending."""
    smallest_prefill_limit: int
    """The most tokens that a bundle's smallest prefill may take."""
    smallest_bucket: int
    """The shortest context, in tokens, that gets signatures of its own."""
    bucket_factor: int
    """Each such context is this many times as long as the one before, and the whole context at least as many times."""
    smallest_prefill_bucket: int
    """The shortest context, in tokens, that gets prefills of its own."""

    def prefills_within(self, context: int) -> tuple[int, ...]:
        """The default prefills that fit in a context.

        >>> CPU.prefills_within(40)
        (16,)
        """
        return tuple(tokens for tokens in self.prefill_sizes if tokens <= context)

    def context_buckets(self, context: int) -> tuple[int, ...]:
        """The shorter contexts that get signatures of their own, so that a step reads little of the unused KV cache.

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
        """The `context_buckets` for which prefills have signatures too.

        >>> CPU.prefill_buckets(32768, 128)
        (8192,)
        """
        shortest = max(self.smallest_prefill_bucket, largest_prefill)
        return tuple(bucket for bucket in self.context_buckets(context) if bucket >= shortest)


CPU = Target(
    name="cpu",
    # XNNPACK has kernels for multiples of 32; other sizes fall back to a kernel that is 500 times slower.
    block_sizes=(32, 64, 128, 256),
    # Beyond 64, a CPU gains a few percent at most, while arenas and ring caches grow.
    prefill_sizes=(16, 64),
    # LiteRT-LM fails where the room left in the context is smaller than the smallest prefill.
    smallest_prefill_limit=16,
    smallest_bucket=512,
    # LiteRT keeps about 10 MB for each signature of a model of real size, more than closer buckets would save.
    bucket_factor=4,
    # In shorter contexts, attention is only a few percent of a prefill's time in a model of real size.
    smallest_prefill_bucket=4096,
)
"""LiteRT's CPU runtime, XNNPACK, in our own runtime and in LiteRT-LM."""
