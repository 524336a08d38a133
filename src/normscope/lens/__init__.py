"""One pass over a model and its data: what every normalisation layer did to every class."""
