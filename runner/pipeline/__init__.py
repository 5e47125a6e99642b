"""The stock pipeline over placed components, and the adapters in them."""
