"""Plans the files of a bundle, with their signatures, weights and records."""
