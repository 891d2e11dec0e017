"""Which experts work on one set of texts more than on another."""
