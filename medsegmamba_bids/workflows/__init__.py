"""What is run on each T1w, in which order and by which processes."""
