"""Plans the text groups in every requested size."""

from __future__ import annotations

from collections.abc import Sequence

from converters.gemma.plan import PlannedSize, PlannedText, plan_text
from converters.gemma3n.config.text import TextConfig, TextModel
from converters.gemma3n.graphs.text.decoder import decode_graph, prefill_graph, verify_graph
from converters.gemma3n.plan.text_source import TextSource
from converters.gemma3n.sizes.elastic import combine
from converters.gemma3n.sizes.matformer import SlicedCheckpoint
from converters.gemma3n.tensors import text_tensors
from converters.plan import Plan, PlanRequest
from converters.slices import Slice


def plan_sizes(checkpoint: TextModel, request: PlanRequest) -> Plan:
    """The plan of a bundle without towers; SliceError if the sizes cannot share their weights and KV caches."""
    return plan_text(planned_text(checkpoint, request.slices), request)


def planned_text(checkpoint: TextModel, slices: Sequence[Slice]) -> PlannedText[TextConfig]:
    """The text model in these sizes; SliceError if they cannot share their weights and KV caches."""
    elastic = combine(checkpoint.config, slices)
    sizes = zip(elastic.slices, elastic.prefixes, elastic.sizes, strict=True)
    return PlannedText(
        config=elastic.config,
        source=TextSource(SlicedCheckpoint(checkpoint, elastic.widest), elastic.config),
        tensors=text_tensors(elastic.config),
        sizes=tuple(PlannedSize(*size) for size in sizes),
        decode=decode_graph,
        prefill=prefill_graph,
        verify=verify_graph,
    )
