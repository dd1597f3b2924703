"""What the field started from, on the same splits: a score says something only beside these."""
