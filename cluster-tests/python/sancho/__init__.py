"""Stands in for the test runner sancho, which was never ported to Python 3 and is on no index."""
