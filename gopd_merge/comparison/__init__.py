"""Is the merge really better? Everybody answers the same questions on one loaded base."""
