"""Sharing an adapter: the facts of its run, the model card made of them, and the way to a hub."""
