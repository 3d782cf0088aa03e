"""The part of SMACv2 that draws."""
