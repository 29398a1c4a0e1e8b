"""MatFormer sizes: cutting one out of a checkpoint, finding one, joining several."""
