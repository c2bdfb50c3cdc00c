"""What people read. Imports no torch."""
