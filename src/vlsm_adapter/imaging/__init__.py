"""What goes into prediction and comes out of it: pictures, pages, frames, volumes and DICOM series, and answers in kind.

Knows neither models nor adapters: a :class:`~vlsm_adapter.imaging.base.Stack` gives 8-bit pictures, writers take masks.
"""
