"""The bundle directory: its manifest, its PLE shards, the signatures of its graphs, the writer and the checker."""
