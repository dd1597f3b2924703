"""Tasks: from a labelled example to GLM samples, and what the field started from beside them."""
