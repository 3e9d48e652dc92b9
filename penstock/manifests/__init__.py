"""What users write: typed kinds, loading with file and line, validation."""
