"""Training of generators: collect adapters, pair them with prompts, train, evaluate."""
