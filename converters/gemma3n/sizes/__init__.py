"""MatFormer: cuts slices from a checkpoint, finds them by name or budget, and joins several sizes in one bundle."""
