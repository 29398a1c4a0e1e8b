"""MatFormer sizes: cuts slices from a checkpoint, finds them by name or budget, and joins several in one bundle."""
