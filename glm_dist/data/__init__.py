"""Sources, shards, row tables and rows."""
