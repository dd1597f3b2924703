"""Finished models as endpoints: OpenAI's protocol, with and without Ray Serve."""
