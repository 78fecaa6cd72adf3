"""Arrays in, pictures out: slices, surfaces and pages, for reports and evaluation."""
