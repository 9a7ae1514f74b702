"""All that speaks Redis."""
