"""The training loop, its plan, and its launch under Ray Train."""
