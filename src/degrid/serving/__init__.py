"""A server for trying models on your own photographs: a REST interface, and a page that uses it."""
