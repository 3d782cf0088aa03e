"""Importing this is all that drawing needs here; for SMACv2 it may fail, with pygame or PySC2."""
