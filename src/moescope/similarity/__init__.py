"""How alike the experts of a layer are, on identical inputs and in their weights."""
