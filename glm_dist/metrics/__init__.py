"""FLOPs, clock and sinks."""
