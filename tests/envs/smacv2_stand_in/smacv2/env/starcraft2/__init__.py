"""Rendering of SMACv2."""
