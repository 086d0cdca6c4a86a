"""Where users already work: MONAI bundles and napari. Neither is a dependency of the package."""
