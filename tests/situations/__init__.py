"""Situations as owners of models have them: a model, a loader, what is wrong, what is right."""
