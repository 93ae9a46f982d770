"""Which value is held in which precision, and why."""
