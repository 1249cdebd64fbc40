"""Being one of several: hearing the others and telling them, choosing who loads a model, showing the mesh as one, leaving it."""
