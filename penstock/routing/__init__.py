"""Services and routes compiled to one neutral route model. Pure."""
