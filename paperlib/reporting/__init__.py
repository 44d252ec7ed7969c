"""Tables, figures and provenance, from numbers to files under ``figures/<profile>/``."""
