//! The data plane: listeners, names, routes, parking, balancing, limits, usage.
