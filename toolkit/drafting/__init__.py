"""Makes a drafter for a model by least squares, from text that the model writes itself."""
