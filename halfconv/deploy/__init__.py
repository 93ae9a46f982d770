"""Packages that a phone, a browser, an edge box or a server team can use as they are."""
