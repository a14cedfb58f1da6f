"""Images in classes: where they come from, the cache of what they look like, and the benchmarks."""
