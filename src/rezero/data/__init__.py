"""Data sets that studies run on: loaders, splits and batches that depend on nothing but (seed, step)."""
