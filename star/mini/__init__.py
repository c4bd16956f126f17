"""The embedded world: drawing it, and building the small models that live in it."""
