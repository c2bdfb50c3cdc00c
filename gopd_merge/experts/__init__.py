"""What comes in: adapters, the base, and merging by arithmetic."""
