"""`tunewright render DATA`: every row as it would be trained, with its mask and the proof of it."""
