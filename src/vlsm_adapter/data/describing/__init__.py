"""Words for a mask: measured, put into the prompt levels p0 to p9, and written beside a data set.

``measure`` reads shape, colour, size, number and position off an image and its mask, and says nothing where two
readers could differ; ``colours`` holds the colour names; ``phrases`` makes the prompts of each level; ``classes``
reads the file of class names and descriptions that users can edit; ``write`` leaves the prompts in a file beside the
data and reads it back. How-to and thresholds: docs/prompts.md.
"""
