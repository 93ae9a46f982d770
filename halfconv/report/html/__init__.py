"""The HTML report: one self-contained file a command. A view model per command, charts by matplotlib, a page by Jinja2."""
