"""A fixed list of named environments with all their examples in memory."""
