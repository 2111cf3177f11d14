"""Training of SVF expert vectors: next-token loss, then REINFORCE."""
