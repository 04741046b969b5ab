"""`kodolly top`: workers and models in a terminal, as they are now."""
