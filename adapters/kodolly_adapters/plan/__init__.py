"""`kodolly plan`: what a recipe needs of memory, time and money, from the model's config alone."""
