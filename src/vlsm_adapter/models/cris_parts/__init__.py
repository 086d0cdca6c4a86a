"""The parts of CRIS, one file each; :mod:`vlsm_adapter.models.cris` puts them together."""
