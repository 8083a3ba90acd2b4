"""The audit of the rows that were kept: checks with figures, limits and example rows."""
