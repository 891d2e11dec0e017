"""What it costs to take experts away, beside taking away others like them."""
