"""Which algorithm runs each convolution, and how much memory a pass takes."""
