"""Images and labels: reading, geometry, intensities. Knows nothing of networks."""
