"""Which files a bundle gets, with their signatures, weights and records."""
