"""The callbacks of this package on the trainers of others."""
