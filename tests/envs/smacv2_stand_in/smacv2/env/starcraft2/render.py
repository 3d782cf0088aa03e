"""Empty; in SMACv2 this import may fail because of pygame or PySC2."""
