"""What a graph is: its preparation, its types, and what its operators may hold in half precision."""
