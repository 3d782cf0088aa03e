"""Import path of a stand-in for the package ``smacv2``."""
