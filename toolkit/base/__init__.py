"""What everything else stands on: errors, whole-or-absent files, strict JSON, arithmetic of layouts."""
