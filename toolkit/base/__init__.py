"""The foundation of all packages: errors, atomic file writes, strict JSON, layout arithmetic, element types."""
