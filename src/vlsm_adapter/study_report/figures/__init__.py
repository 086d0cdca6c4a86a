"""Figures of a study for papers: drawn with matplotlib, which is imported inside functions only."""
