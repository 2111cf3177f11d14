"""The demo's training, and the guided tour, which trains adapters to compare with."""
