"""A folder to put on the path where tests need a package ``smacv2`` and have no game."""
