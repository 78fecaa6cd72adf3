"""Running a network over a volume: devices, patches, whole images."""
