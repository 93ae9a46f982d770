"""Small models of every kind that breaks FP16 converters."""
