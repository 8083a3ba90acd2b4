"""The shapes that rows come in, detected row by row; `detect.read_row` is the way in."""
