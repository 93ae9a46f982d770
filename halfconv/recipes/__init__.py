"""Recipes: small models, each trained on real data that a package ships. One file each, in ``models/`` of a clone."""
