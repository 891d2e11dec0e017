"""What the next token and the text become when experts are boosted or taken away."""
