"""Tests of `halfconv.runtime`."""
