"""From raw text to token shards."""
