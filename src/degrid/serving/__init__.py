"""A server for trying models on one's own photographs: a REST interface, and a page that uses it."""
